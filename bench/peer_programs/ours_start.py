"""What it takes this project to read the first window of a run: `python ours_start.py DATASET LENGTH`."""

import sys

from starts import report

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader


def main() -> None:
    """Measure it, imports excluded."""
    dataset, length = sys.argv[1:]
    report(lambda: SampleReader(DataConfig(path=dataset), int(length), seed=0).tokens(0))


if __name__ == "__main__":
    main()
