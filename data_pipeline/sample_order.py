"""Where every sample of a run comes from: source, epoch and window, from a plan and an order for each epoch."""

from collections.abc import Sequence

import numpy as np

from data_pipeline.order import Indices, Permutation, derive_key
from data_pipeline.plan import SamplePlan


class SampleOrder:
    """The windows of each source in the order in which `plan` asks for them: a pure function of its arguments.

    `windows` and `keys` are those of each source of the plan; every epoch over a source has an order of its own.
    With `subset`, the windows that are ordered are the first that it gives, and their numbers are those it maps to.
    """

    def __init__(
        self, plan: SamplePlan, windows: Sequence[int], keys: Sequence[int], subset: Permutation | None = None
    ) -> None:
        self.plan = plan
        self._windows, self._keys, self._subset = np.array(windows), keys, subset

    def places(self, begin: int, end: int) -> tuple[Indices, Indices, Indices]:
        """Source (its number in the plan), epoch and window of samples [begin, end), each of shape [end - begin], less
        where the plan ends before."""
        sources, ranks = self.plan.draw(begin, end)
        epochs, positions = np.divmod(ranks, self._windows[sources])
        windows = np.empty_like(ranks)
        for source, epoch in set(zip(sources.tolist(), epochs.tolist(), strict=True)):
            chosen = (sources == source) & (epochs == epoch)
            order = Permutation(int(self._windows[source]), derive_key(self._keys[source], epoch))
            windows[chosen] = order.map(positions[chosen])
        if self._subset is not None:
            windows = self._subset.map(windows)
        return sources, epochs, windows
