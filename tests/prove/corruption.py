"""Damages checkpoints in every way that a disk or a hand does, and writes what came of it into docs/reliability.md.

`python -m tests.prove.corruption` makes 200 damages, each a pure function of its number: bits flipped anywhere and in
the header, files cut, emptied, removed, lengthened, swapped, or taken from another step. Checkpoints of several
layouts are resumed under their own layout or another one. Each damage must be refused by `verify` and by the resume
path, on all ranks, with the file named and the previous valid checkpoint offered.
"""

import argparse
import random
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from parallel.checkpoint.catalogue import verify_checkpoint
from parallel.checkpoint.manifest import MANIFEST, CheckpointManifest
from parallel.checkpoint.store import Progress, save_checkpoint, step_directory
from pretrain.config import RunConfig
from pretrain.guards import Guard
from pretrain.run_directory import RunDirectory
from pretrain.session import Session, run_identity
from runtime.deadline import Deadline
from runtime.errors import UserError
from runtime.lease import Fence
from tests.support.checkpoints import Logical, random_state
from tests.support.damage import flip_bit, swap, truncate
from tests.support.reference_model import logical_shapes
from tests.support.threads import HeldState, differing, fill, held_states, run_ranks
from tests.support.tiny import tiny_config

LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "megatron tp2 pp2": (4, {"tensor": 2, "pipeline": 2}),
    "megatron dp3 zero1": (3, {"zero": 1}),
    "deepspeed dp2 zero3": (2, {"engine": "deepspeed", "zero": 3}),
}
BEGIN, END = "<!-- corruption: begin -->", "<!-- corruption: end -->"
OLDER, NEWER = 4, 8
DATA = "data"


@dataclass(frozen=True)
class Damage:
    """What is done to file `name` of the newest checkpoint, `other` beside it and the older one's `twin`."""

    kind: str
    share: int
    apply: Callable[[Path, Path, Path, int], Any]


def _flip_in_header(path: Path, _other: Path, _twin: Path, seed: int) -> None:
    size = path.stat().st_size if path.name == MANIFEST else _header_bytes(path)
    flip_bit(path, seed, size)


def _header_bytes(path: Path) -> int:
    return CheckpointManifest.read(path.parent).files[path.name].header_bytes


def _cut(path: Path, _other: Path, _twin: Path, seed: int) -> None:
    truncate(path, seed)
    while path.name == MANIFEST and path.read_bytes().endswith(b"}"):  # white space at its end says nothing
        path.write_bytes(path.read_bytes()[:-1])


def _lengthen(path: Path, _other: Path, _twin: Path, seed: int) -> None:
    path.write_bytes(path.read_bytes() + random.Random(seed).randbytes(1 + seed % 4096) + b"\0")


DAMAGES = (
    Damage("a bit flipped anywhere", 80, lambda path, other, twin, seed: flip_bit(path, seed)),
    Damage("a bit flipped in the header or manifest", 40, _flip_in_header),
    Damage("cut short", 24, _cut),
    Damage("emptied", 12, lambda path, other, twin, seed: path.write_bytes(b"")),
    Damage("removed", 12, lambda path, other, twin, seed: path.unlink()),
    Damage("lengthened", 12, _lengthen),
    Damage("swapped with another file of the checkpoint", 10, lambda path, other, twin, seed: swap(path, other)),
    Damage("replaced by the same file of an earlier step", 10, lambda path, other, twin, seed: shutil.copy(twin, path)),
)


class Stage:
    """A layout with real engines' cuts, and a run that has two checkpoints of it."""

    def __init__(self, name: str, root: Path) -> None:
        self.name, self.directory = name, RunDirectory(root / name.replace(" ", "-"))
        self.world, layout = LAYOUTS[name]
        self.config: RunConfig = tiny_config(parallel=layout, train__global_batch=24, train__micro_batch=1)
        self.states: list[HeldState] = held_states(self.config, self.world)
        for step in (OLDER, NEWER):
            self._save(step)

    @cached_property
    def values(self) -> dict[int, Logical]:
        """The logical state of both steps; the same under every layout."""
        return {step: random_state(logical_shapes(self.config.model), step) for step in (OLDER, NEWER)}

    def _save(self, step: int) -> None:
        identity = run_identity(self.config, DATA)
        progress = Progress(step, step, step * 24, step * 768, identity, {}, Guard(self.config.guard).state())

        def save(mesh: Any) -> None:
            state = self.states[mesh.rank]
            state.mesh = mesh
            fill(state, self.values[step])
            save_checkpoint(self.directory.checkpoints, state, progress)

        for outcome in run_ranks(self.world, save):
            if outcome is not None:
                raise outcome

    def resume(self, directory: RunDirectory) -> list[Any]:
        """What the resume path says on each rank: the step, or its refusal."""

        def resume(mesh: Any) -> int:
            state = self.states[mesh.rank]
            state.mesh = mesh
            data = type("Data", (), {"digest_before": lambda _self, _samples: DATA})()
            session = Session(self.config, directory, state, data, 0, Fence(), Deadline(None, 0.0))
            return session.resume()[0]

        return run_ranks(self.world, resume)


@dataclass(frozen=True)
class Verdict:
    """What came of one damage; `silent` says that any rank went on with a damaged checkpoint."""

    kind: str
    source: str
    target: str
    name: str
    silent: bool
    verified: bool
    named: bool
    offered: bool

    @property
    def sound(self) -> bool:
        """Whether all was as it must be."""
        return not self.silent and self.verified and self.named and self.offered


def damage_of(number: int) -> Damage:
    """The kind of damage of a number: each kind has its share of any 200 in a row."""
    deal = [damage for damage in DAMAGES for _ in range(damage.share)]
    random.Random(number // len(deal)).shuffle(deal)
    return deal[number % len(deal)]


def try_damage(stages: Sequence[Stage], number: int) -> Verdict:
    """Damage a checkpoint, look what verify and resume say, and mend it."""
    chance, damage = random.Random(number), damage_of(number)
    source, target = chance.choice(stages), chance.choice(stages)
    newest, older = (step_directory(source.directory.checkpoints, step) for step in (NEWER, OLDER))
    names = sorted(path.name for path in newest.iterdir())
    name = chance.choice(names)
    other = chance.choice([n for n in names if n != name])
    kept = {n: (newest / n).read_bytes() for n in names}
    damage.apply(newest / name, newest / other, older / name, number)
    touched = {newest / n for n in names if not (newest / n).exists() or (newest / n).read_bytes() != kept[n]}
    assert touched, f"{damage.kind} {number} changed nothing"
    try:
        try:
            verify_checkpoint(newest)
            told = ""
        except UserError as error:
            told = str(error)
        outcomes = target.resume(source.directory)
    finally:
        for n, content in kept.items():
            (newest / n).write_bytes(content)
    lines = [str(outcome) if isinstance(outcome, UserError) else "" for outcome in outcomes]
    named = all(any(str(path) in line for path in touched) for line in [told, *lines])
    offered = all(f"the newest valid one is {older}" in line for line in lines)
    return Verdict(damage.kind, source.name, target.name, name, not all(lines), bool(told), named, offered)


def prove(numbers: Sequence[int], root: Path, layouts: Sequence[str] = tuple(LAYOUTS)) -> Iterator[Verdict]:
    """Try the damages of `numbers` on checkpoints below `root`; in the end the undamaged ones must still load."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the engines give many
        stages = [Stage(name, root) for name in layouts]
    for number in numbers:
        yield try_damage(stages, number)
    for stage in stages:
        assert stage.resume(stage.directory) == [NEWER] * stage.world
        assert all(differing(state, stage.values[NEWER]) == [] for state in stage.states)


def table(verdicts: Sequence[Verdict]) -> str:
    """A Markdown table by kind of damage."""
    lines = [
        "| damage | tried | refused by verify | refused by resume | file named | previous offered | silent |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in [*(damage.kind for damage in DAMAGES), ""]:
        mine = [v for v in verdicts if kind in ("", v.kind)]
        counts = [
            len(mine),
            sum(v.verified for v in mine),
            sum(not v.silent for v in mine),
            sum(v.named for v in mine),
            sum(v.offered for v in mine),
            sum(v.silent for v in mine),
        ]
        name = kind or "**all**"
        lines.append(f"| {name} | {' | '.join(map(str, counts))} |")
    return "\n".join(lines)


def report(verdicts: Sequence[Verdict], seconds: float) -> str:
    """What is written between the markers."""
    files = Counter("manifest" if v.name == MANIFEST else "shard" for v in verdicts)
    layouts = ", ".join(sorted({v.source for v in verdicts}))
    return (
        f"{len(verdicts)} damages ({files['shard']} to shards, {files['manifest']} to manifests) of checkpoints written"
        f" under {layouts}, resumed under the same or another of them, by `python -m tests.prove.corruption` in"
        f" {seconds:.0f} s.\n\n{table(verdicts)}"
    )


def main() -> None:
    """Parse arguments, run, and rewrite the report between its markers."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--damages", type=int, default=200)
    parser.add_argument("--page", type=Path, default=Path("docs/reliability.md"))
    options = parser.parse_args()
    start, verdicts = time.monotonic(), []
    with tempfile.TemporaryDirectory(prefix="lacuna-corruption-") as scratch:
        for verdict in prove(range(options.damages), Path(scratch)):
            verdicts.append(verdict)
            if not verdict.sound:
                print(verdict, file=sys.stderr)
            if len(verdicts) % 20 == 0:
                print(f"{len(verdicts)}/{options.damages}", file=sys.stderr, flush=True)
    before, rest = options.page.read_text().split(BEGIN)
    text = report(verdicts, time.monotonic() - start)
    options.page.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.split(END)[1]}")
    if not all(verdict.sound for verdict in verdicts):
        sys.exit(1)


if __name__ == "__main__":
    main()
