"""Progress that a person can follow: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class ProgressBar:
    """`with ProgressBar("train", total=100) as bar: bar.advance(1, "loss 3.2")`; silent if not `visible`."""

    def __init__(self, title: str, total: int, visible: bool = True) -> None:
        self.done = 0
        self._title, self._total, self._note = title, total, ""
        self._visible = visible
        self._last_line = time.monotonic()
        self._bar: Progress | None = None
        if visible and sys.stderr.isatty():
            columns = (
                TextColumn("{task.description:<12}"),
                BarColumn(),
                MofNCompleteColumn(),
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
        print(f"{self._title}: {self.done}/{self._total} {self._note}".rstrip(), file=sys.stderr, flush=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()
        elif self._visible and kind is None:  # an error speaks for itself
            self._print_line()
