"""Progress that a person can follow: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """`with ProgressBar("train", total=100) as bar: bar.advance(1, "loss 3.2")`; silent if not `visible`.

    With `in_bytes` the units are bytes, and are shown so.
    """

    def __init__(self, title: str, total: int, visible: bool = True, in_bytes: bool = False) -> None:
        self.done = 0
        self._title, self._total, self._note = title, total, ""
        self._visible, self._in_bytes = visible, in_bytes
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if visible and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(),
                DownloadColumn() if in_bytes else MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[note]}"),
            )
            self._bar = Progress(*columns, console=Console(file=sys.stderr), transient=False)
            self._task = self._bar.add_task(title, total=total, note="")

    def __enter__(self) -> "ProgressBar":
        if self._bar:
            self._bar.start()
        return self

    def advance(self, amount: int = 1, note: str = "") -> None:
        """Count `amount` more units; `note` is shown beside the bar."""
        self.done, self._note = self.done + amount, note
        if self._bar:
            self._bar.update(self._task, advance=amount, note=note)
        elif self._visible and time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            self._print_line()

    def _print_line(self) -> None:
        self._last_line = time.monotonic()
        done, total = (f"{n / 1e6:.0f}" if self._in_bytes else str(n) for n in (self.done, self._total))
        unit = " MB" if self._in_bytes else ""
        print(f"{self._title}: {done}/{total}{unit} {self._note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._visible and kind is None:  # an error speaks for itself
            self._print_line()
