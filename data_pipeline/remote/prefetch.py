"""Threads that fetch blocks before they are needed."""

import atexit
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

K = TypeVar("K")
_THREADS = 8
_REMEMBERED = 1 << 11
_SECONDS_TO_END = 10.0


class Prefetcher(Generic[K]):
    """Calls `fetch` for what is wanted, in that order, each only once while it is remembered.

    `fetch` must not raise: whoever needs a block will meet the failure. The threads are started by the first wish, and
    end with the process.
    """

    def __init__(self, fetch: Callable[[K], None], threads: int = _THREADS) -> None:
        self._fetch, self._count = fetch, threads
        self._waiting: deque[K] = deque()
        self._known: OrderedDict[K, None] = OrderedDict()
        self._changed = threading.Condition()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def want(self, keys: Iterable[K]) -> None:
        """Fetch `keys` soon. Never waits."""
        with self._changed:
            fresh = [key for key in keys if key not in self._known]
            if self._closed or not fresh:
                return
            for key in fresh:
                self._known[key] = None
            while len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)
            self._waiting.extend(dict.fromkeys(fresh))
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

    def close(self) -> None:
        """End the threads; waits a little for fetches under way. May be repeated."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(_SECONDS_TO_END)
        atexit.unregister(self.close)
