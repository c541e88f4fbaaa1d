"""Threads that fetch blocks before they are needed."""

import atexit
import threading
from collections import deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K")
_THREADS = 8
_SECONDS_TO_END = 10.0


class Prefetcher(Generic[K]):
    """Calls `fetch` for what is wanted, in that order; what already waits or is under way, not again.

    `fetch` must not raise, since whoever needs a block will meet the failure, and knows itself what is there already.
    The threads are started by the first wish, and end with the process.
    """

    def __init__(self, fetch: Callable[[K], None], threads: int = _THREADS) -> None:
        self._fetch, self._count = fetch, threads
        self._waiting: deque[K] = deque()
        self._pending: set[K] = set()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def want(self, keys: Iterable[K]) -> None:
        """Fetch `keys` soon. Never waits."""
        with self._changed:
            fresh = [key for key in dict.fromkeys(keys) if key not in self._pending]
            if self._closed or not fresh:
                return
            self._pending.update(fresh)
            self._waiting.extend(fresh)
            self._changed.notify_all()
            if not self._threads:
                self._start()

    def _start(self) -> None:
        self._threads = [
            threading.Thread(target=self._work, name="lacuna-prefetch", daemon=True) for _ in range(self._count)
        ]
        atexit.register(self.close)  # before the object store's client is taken down
        for thread in self._threads:
            thread.start()

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._closed or self._waiting)
                if self._closed:
                    return
                key = self._waiting.popleft()
            self._fetch(key)
            with self._changed:
                self._pending.discard(key)

    def close(self) -> None:
        """End the threads; waits a little for fetches under way. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)
        atexit.unregister(self.close)
