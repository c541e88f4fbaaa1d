"""A run in MLflow's own pages, in a real headless Chromium; skipped with the reason where there is none."""

from pathlib import Path

import pytest

from tests.prove.ui import missing, show


@pytest.mark.slow
@pytest.mark.skipif(bool(missing()), reason=missing())
def test_pages_of_a_run_show_its_metrics_plots_and_files(tmp_path: Path) -> None:
    picture = tmp_path / "page.png"
    show(tmp_path, picture)
    assert picture.stat().st_size > 10_000
