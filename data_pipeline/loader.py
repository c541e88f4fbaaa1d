"""Assembles the next batches on one thread while the current one is in use."""

import threading
import time
from collections import deque
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Loader(Generic[T]):
    """Iterates `assemble(start) ... assemble(stop - 1)`, up to `depth` of them ready ahead of use.

    One prefetch thread calls `assemble` in order. An exception it raises reaches the consumer instead of that
    item, after the items before it. The whole state is `position`: a loader that starts there goes on alike.
    """

    def __init__(self, assemble: Callable[[int], T], start: int, stop: int, depth: int = 2) -> None:
        assert depth >= 1, "a loader needs room for one item"
        self.position = start
        self.wait_seconds = 0.0
        self._assemble, self._stop, self._depth = assemble, stop, depth
        self._ready: deque[T] = deque()
        self._error: BaseException | None = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, args=(start,), name="lacuna-loader", daemon=True)
        self._thread.start()

    def _work(self, start: int) -> None:
        try:
            for index in range(start, self._stop):
                item = self._assemble(index)
                with self._changed:
                    self._changed.wait_for(lambda: self._closed or len(self._ready) < self._depth)
                    if self._closed:
                        return
                    self._ready.append(item)
                    self._changed.notify_all()
        except BaseException as error:
            with self._changed:
                self._error = error
                self._changed.notify_all()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> T:
        """The next item; `wait_seconds` then says how long it was waited for."""
        if self._closed or self.position >= self._stop:
            raise StopIteration
        begin = time.perf_counter()
        with self._changed:
            self._changed.wait_for(lambda: self._ready or self._error is not None or self._closed)
            self.wait_seconds = time.perf_counter() - begin
            if self._ready:
                self.position += 1
                item = self._ready.popleft()
                self._changed.notify_all()
                return item
            error = self._error
        self.close()
        raise StopIteration if error is None else error

    def close(self) -> None:
        """End the thread and forget what was ready; waits for an `assemble` under way. May be repeated."""
        with self._changed:
            self._closed = True
            self._ready.clear()
            self._changed.notify_all()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
