"""Samples in damaged batches, left out by all ranks alike."""

from __future__ import annotations

from parallel.mesh import Mesh
from pretrain.agreement import Agreement, agree
from pretrain.feed import Feed, StepBatch
from runtime.errors import UserError
from runtime.logs import log


class Quarantine:
    """Sees to it that a sample that one rank cannot read is left out by all that share it.

    Ranks that hold parts of one model copy read the same samples, perhaps from other copies of the file: what one of
    them leaves out, all must. A place left out stays empty, so that no other sample moves and none is given twice.
    """

    def __init__(self, mesh: Mesh, feed: Feed) -> None:
        self._mesh, self._feed = mesh, feed
        self._told: set[str] = set()
        self._since_last_line: list[int] = []

    def settle(
        self,
        step: int,
        batch: StepBatch,
        stop: bool,
        votes: tuple[int, int],
        worked: float = 0.0,
        waited: float = 0.0,
    ) -> tuple[StepBatch, Agreement]:
        """The batch of step `step` (counted from 0) without what any rank has left out, and what `agree` says of it.

        Every rank calls this. Raises UserError if nothing is left of the global batch.
        """
        agreed = agree(self._mesh, batch, stop, votes, worked, waited)
        if agreed.damaged:
            damage = dict(sample for share in self._mesh.gather(batch.quarantined) for sample in share)
            self._note(damage)
            batch = self._feed.step(step, damage.keys())
            agreed = agree(self._mesh, batch, stop, votes, worked, waited)
        if not agreed.tokens:
            raise UserError(f"step {step + 1}: every sample of it is in damaged batches: restore the files named above")
        return batch, agreed

    def _note(self, damage: dict[int, str]) -> None:
        self._since_last_line += sorted(damage)
        for sample, reason in sorted(damage.items()):
            if reason not in self._told:
                self._told.add(reason)
                if self._mesh.rank == 0:
                    log.warning("sample %d is left out, as are others of its batch: %s", sample, reason)

    def metrics(self) -> dict[str, int | str]:
        """What was left out since the last call, for a line of metrics."""
        samples, self._since_last_line = self._since_last_line, []
        if not samples:
            return {}
        return {"data/quarantined_samples": len(samples), "data/quarantined": ",".join(map(str, samples))}
