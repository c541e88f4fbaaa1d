"""`python -m launch.slurm.show RUN [PID]`: shows a run to MLflow while process PID lives, or once.

The script starts it beside the ranks, since none of them must wait for a tracking server.
"""

from __future__ import annotations

import sys
from pathlib import Path

from launch.tracking import sync_run, tracking_uri
from pretrain.config import RunConfig
from pretrain.run_directory import RunDirectory
from pretrain.tracking.follow import follow
from runtime.environment import RankInfo
from runtime.errors import LacunaError, one_line
from runtime.logs import configure_logs
from runtime.settings import read_yaml


def main(arguments: list[str]) -> int:
    """Entry point; returns the exit code."""
    directory = RunDirectory(Path(arguments[0]))
    try:
        if arguments[1:]:
            config = RunConfig.parse(read_yaml(directory.config), str(directory.config))
            configure_logs(RankInfo(), directory.root / "logs" / "tracking")
            uri, experiment = tracking_uri(config, directory), config.tracking.experiment
            follow(directory.root, uri, int(arguments[1]), 5.0, experiment, conclude=False)
        else:
            sync_run(directory)
    except LacunaError as error:
        print(f"lacuna: MLflow does not have all of this run yet: {one_line(error)}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
