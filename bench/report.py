"""Results as tables: for the terminal, and as Markdown between two markers of a document."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from bench.checkpoint import LOAD, READ, SAVE, WRITE, BlockedResult, CheckpointResult, ComputedBlocked
from bench.communication import LayoutResult
from bench.contenders import LOOP, MEGATRON, PLAIN
from bench.gemm import GemmRates
from bench.loader import OURS, FeedResult, WindowResult
from bench.reshard import COPY, DURABLE_COPY, RESHARD, ReshardResult
from bench.step import StepResult
from bench.timing import Spread
from runtime.errors import UserError
from runtime.files import write_atomic

BAR = 1.05
"""Most that an engine's step may cost, as a multiple of the plain loop's."""
BLOCKED_AIM = 0.05
"""Most that a save in the background may keep the training waiting, as a share of a step."""


@dataclass(frozen=True)
class Table:
    """A titled table of text cells with a line of explanation; the first column names the row."""

    title: str
    note: str
    headings: Sequence[str]
    rows: Sequence[Sequence[str]]

    def show(self, console: Console) -> None:
        """Print it."""
        table = RichTable(box=SIMPLE_HEAD, header_style="bold", pad_edge=False)
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="left" if number == 0 else "right")
        for row in self.rows:
            table.add_row(*row)
        console.print(f"[bold]{self.title}[/bold]\n{self.note}", highlight=False)
        console.print(table)

    def markdown(self) -> str:
        """The table under its title as a heading."""
        rule = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = ["| " + " | ".join(cells) + " |" for cells in (self.headings, rule, *self.rows)]
        return "\n".join([f"### {self.title}", "", self.note, "", *lines])


def gemm_table(gemm: GemmRates) -> Table:
    """Rates of all products; the limit is the best one."""
    rows = [[name, f"{rate / 1e9:.1f}"] for name, rate in sorted(gemm.rates.items(), key=lambda item: -item[1])]
    note = f"The limit of this machine: {gemm.limit / 1e9:.1f} GFLOP/s ({gemm.best.name})."
    return Table("Matrix products, float32", note, ["product", "GFLOP/s"], rows)


def step_table(result: StepResult) -> Table:
    """Every contender's step."""
    rows = [
        [
            kind,
            taken.show(1, 1e3),
            f"{result.tokens / taken.median:,.0f}",
            f"{result.flops / taken.median / 1e9:.1f}",
            f"{result.share_of_limit[kind].median:.1%}",
            "1" if kind == PLAIN else result.to_plain[kind].show(3, unit="×"),
        ]
        for kind, taken in result.seconds.items()
    ]
    engine = result.to_plain[MEGATRON].median
    verdict = f"The {MEGATRON} costs {engine:.3f}× the {PLAIN} (bar {BAR}×: {'met' if engine <= BAR else 'missed'})."
    headings = ["who", "ms a step", "tokens/s", "GFLOP/s", "of the limit", f"time to the {PLAIN}"]
    return Table(
        f"Training step: {result.workload}", f"{result.shape}; {result.rounds} rounds. {verdict}", headings, rows
    )


def window_table(results: Sequence[WindowResult]) -> Table:
    """Our reader and the flat files."""
    rows = [
        [
            name,
            f"{result.batch} × {result.length}",
            rate.show(1, 1e-6),
            "1" if name == OURS else result.ratios[name].show(2, unit="×"),
        ]
        for result in results
        for name, rate in result.rates.items()
    ]
    note = "The same windows as int64. The flat file's readers are given the windows' numbers, ours finds them."
    return Table("Reading windows", note, ["who", "windows × tokens", "M tokens/s", "ours takes"], rows)


def feed_table(feeds: Sequence[FeedResult], steps: Sequence[StepResult]) -> Table:
    """Assembled batches beside the step that they feed."""
    rows = [
        [
            feed.workload,
            feed.rate.show(2, 1e-6),
            feed.seconds.show(2, 1e3),
            f"{step.seconds[MEGATRON].median * 1e3:.1f}",
            f"{feed.seconds.median / step.seconds[MEGATRON].median:.2%}",
            f"{step.wait * 1e3:.3f}",
        ]
        for feed, step in zip(feeds, steps, strict=True)
    ]
    note = "Windows, noise, digest and collation of a step, beside the step that they feed from a thread of their own."
    headings = ["workload", "M tokens/s", "ms to assemble", "ms a step", "share", f"ms waited, {LOOP}"]
    return Table("Assembled batches", note, headings, rows)


def checkpoint_table(result: CheckpointResult) -> Table:
    """Save and load beside plain file operations."""
    beside = {SAVE: result.save_to_write.show(2, unit="×"), LOAD: result.load_to_read.show(2, unit="×")}
    beside |= {WRITE: "1", READ: "1"}
    rows = [[name, rate.show(0, 1e-6), beside[name]] for name, rate in result.rates.items()]
    note = (
        f"{result.bytes / 1e6:.0f} MB of weights and moments. A save writes, hashes, makes durable and publishes; a "
        "load reads, compares digests and fills the engine. The aim is 1.25× (a rate of 0.8 of the plain one)."
    )
    return Table("Checkpoints", note, ["operation", "MB/s", "time to the plain operation"], rows)


def communication_table(results: Sequence[LayoutResult]) -> Table:
    """Two processes against one, and what they send."""
    rows = [
        [
            result.name,
            result.seconds.show(1, 1e3),
            result.to_single.show(2, unit="×"),
            " + ".join(f"{axis} {sent / 1e6:.2f}" for axis, sent in result.sent.items()),
            f"{sum(result.theory.values()) / 1e6:.2f}",
            f"{result.sent_to_theory:.4f}",
            f"{result.own:.0f}",
        ]
        for result in results
    ]
    note = (
        "Workload demo with micro-batches of 4, over gloo; one process with all cores against two with half of them "
        "each. Bytes a step of the rank that sends most, counted at torch.distributed's operations and weighted as "
        "ring algorithms send, beside `pretrain.planning.traffic` (which takes the expected number of masked rows). "
        "Apart: what loop and engine agree on (counts, digest, statistics, norms, flags)."
    )
    headings = ["layout", "ms a step", "time to one process", "MB counted", "MB theory", "counted/theory", "B apart"]
    return Table("Two processes against one", note, headings, rows)


def reshard_table(result: ReshardResult) -> Table:
    """Rewriting beside copies."""
    beside = {
        RESHARD: "1",
        COPY: result.to_copy.show(2, unit="×"),
        DURABLE_COPY: result.to_durable_copy.show(2, unit="×"),
    }
    rows = [[name, rate.show(0, 1e-6), beside[name]] for name, rate in result.rates.items()]
    before, after = result.files
    note = (
        f"{result.bytes / 1e6:.0f} MB of weights and moments, workload {result.workload}, from {before} files to "
        f"{after}. A reshard reads and verifies every chunk, writes and digests it anew and makes it durable."
    )
    return Table("Rewriting a checkpoint", note, ["operation", "MB/s", "a reshard takes"], rows)


def blocked_table(result: BlockedResult, copy: Spread, large: ComputedBlocked) -> Table:
    """What a save in the background costs the training."""
    share = result.blocked_to_step.median
    note = (
        f"Workload {result.workload}, {result.bytes / 1e6:.1f} MB; training waits for {share:.1%} of a step (aim 5 %: "
        f"{'met' if share <= BLOCKED_AIM else 'missed'}). While the rest is written beside it, the steps share this "
        f"machine's cores. The last row is computed from the copy rate of {copy.show(0, 1e-6, ' MB/s')} measured with "
        f"the larger state here, between host memories; a GPU's differs. It takes the step of `lacuna plan`: "
        f"{large.step_seconds:.2f} s on {large.ranks} {large.device.upper()} at an assumed MFU of {large.mfu:.0%} (aim "
        f"5 %: {'met' if large.share <= BLOCKED_AIM else 'missed'})."
    )
    rows = [
        ["training waits for a save", result.blocked.show(2, 1e3), f"{share:.1%}"],
        ["step, no save under way", result.step.show(1, 1e3), "1"],
        ["step, a save under way", result.beside.show(1, 1e3), f"{result.beside.median / result.step.median:.2f}×"],
        [
            f"computed: {large.recipe} on {large.ranks} ranks, {large.bytes / 1e6:.0f} MB each",
            f"{large.seconds * 1e3:.0f}",
            f"{large.share:.1%}",
        ],
    ]
    return Table("Saves in the background", note, ["what", "ms", "of a step"], rows)


def write_between_markers(path: Path, text: str, name: str = "figures") -> None:
    """Replace what stands between the two markers `name` in `path`. Raises UserError if it has no markers."""
    start, stop = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = path.read_text(encoding="utf-8") if path.is_file() else ""
    before, begin, rest = old.partition(start)
    _, end, after = rest.partition(stop)
    if not (begin and end):
        raise UserError(f"{path} has no lines {start} and {stop}: add them where the figures shall stand")
    write_atomic(path, f"{before}{start}\n{text}\n{stop}{after}")
