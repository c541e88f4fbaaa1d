"""Time that a rank waits for its peers, measured where every blocking collective of torch ends: `Work.wait`."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from types import TracebackType
from typing import Any, Self

from torch.distributed import Work

_CLASS: Any = Work  # its stub says that methods stay


class PeerWaits:
    """While it is entered, knows how long each thread has waited in collectives, and which threads wait now.

    On a GPU most waits are the device's, not the host's, and are not seen here.
    """

    def __init__(self) -> None:
        self._seconds: defaultdict[int, float] = defaultdict(float)
        self._waiting: set[int] = set()
        self._wait: Any = None

    @property
    def seconds(self) -> float:
        """Seconds that the calling thread has waited so far."""
        return self._seconds[threading.get_ident()]

    @property
    def waiting(self) -> bool:
        """Whether some thread waits for peers now."""
        return bool(self._waiting)

    def __enter__(self) -> Self:
        wait = self._wait = _CLASS.wait

        def timed(work: Work, *args: Any, **kwargs: Any) -> Any:
            me, start = threading.get_ident(), time.perf_counter()
            self._waiting.add(me)
            try:
                return wait(work, *args, **kwargs)
            finally:
                self._waiting.discard(me)
                self._seconds[me] += time.perf_counter() - start

        _CLASS.wait = timed
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _CLASS.wait = self._wait
