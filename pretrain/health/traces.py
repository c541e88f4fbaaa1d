"""Traces of a range of steps, as torch.profiler's chrome traces: wanted by the recipe, or of a run under way."""

from __future__ import annotations

import torch

from pretrain.health.config import ProfileConfig
from pretrain.run_directory import RunDirectory
from runtime.errors import UserError
from runtime.files import read_json
from runtime.logs import log


class Traces:
    """Traces of one rank. While nothing is wanted a step costs one look at a variable."""

    def __init__(self, directory: RunDirectory, rank: int, wanted: ProfileConfig | None = None) -> None:
        self._directory, self._rank = directory, rank
        self._wanted = wanted if wanted is not None and rank in wanted.ranks else None
        self._profiler: torch.profiler.profile | None = None
        self._span: torch.profiler.record_function | None = None
        self._seen = self._moment()

    def look_for_request(self) -> None:
        """Take over what `lacuna profile` wants, if that is new since this was made or has looked last.

        May be called on another thread than the steps'.
        """
        moment = self._moment()
        if moment == self._seen:
            return
        self._seen = moment
        try:
            wanted = ProfileConfig.parse(read_json(self._directory.profile_request), "profile.json")
        except UserError as error:
            log.debug("%s", error)
            return
        if self._rank in wanted.ranks and self._profiler is None:
            self._wanted = wanted

    def before(self, step: int) -> None:
        """Step `step`, counted from 1, begins. A range that has begun without this rank is not traced."""
        wanted = self._wanted
        if wanted is None or step < wanted.first:
            return
        if self._profiler is None and step > wanted.first:
            log.debug("steps %d to %d are not traced: step %d has come", wanted.first, wanted.last, step)
            self._wanted = None
            return
        if self._profiler is None:
            activities = [torch.profiler.ProfilerActivity.CPU]
            if torch.cuda.is_available():
                activities.append(torch.profiler.ProfilerActivity.CUDA)
            self._profiler = torch.profiler.profile(activities=activities)
            self._profiler.start()
        self._span = torch.profiler.record_function(f"step {step}")
        self._span.__enter__()

    def after(self, step: int) -> None:
        """Step `step` has ended."""
        if self._span is None or self._wanted is None:
            return
        self._span.__exit__(None, None, None)
        self._span = None
        if step >= self._wanted.last:
            self.close()

    def close(self) -> None:
        """Write what has been traced so far, if a range is under way."""
        profiler, wanted = self._profiler, self._wanted
        self._profiler = self._wanted = None
        if profiler is None or wanted is None:
            return
        profiler.stop()
        path = self._directory.traces(wanted.first, wanted.last) / f"rank-{self._rank:05d}.json.gz"
        staging = path.with_name(f".{path.name}")  # the name's end says that it is packed
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            profiler.export_chrome_trace(str(staging))
            staging.rename(path)
        except OSError as error:
            log.warning("the trace %s was not written: %s", path, error)
        else:
            log.info("traced steps %d to %d: %s", wanted.first, wanted.last, path)

    def _moment(self) -> int:
        try:
            return self._directory.profile_request.stat().st_mtime_ns
        except OSError:
            return 0
