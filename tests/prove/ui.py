"""Shows a run in MLflow's own pages, in a real headless Chromium, and takes a picture of them.

`python -m tests.prove.ui` needs Debian's `chromium` and `chromium-driver`, and selenium (`pip install selenium`). It
trains a small run, starts `mlflow server`, and looks for the run's metrics, system metrics, plot and configuration on
the page of the run. Without a Chromium it says so and ends with code 1.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from runtime.files import read_json
from tests.support.command_line import lacuna, succeeded
from tests.support.mlflow_server import serving
from tests.support.small_run import build_dataset, write_corpus, write_recipe

_SECONDS = 60.0
_METRICS = ("train/loss", "goodput/share", "optim/lr", "perf/tokens_per_second", "train/loss_at_level/9")


def missing() -> str:
    """Why there can be no such proof here, or an empty string."""
    absent = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    if absent:
        return f"{', '.join(absent)} not installed (apt-get install chromium chromium-driver)"
    try:
        import selenium  # noqa: F401 - only whether it is there
    except ImportError:
        return "selenium is not installed (pip install selenium)"
    return ""


def tracked_run(work: Path) -> tuple[Path, Path]:
    """(database, run): a run of 24 steps, shown to MLflow with its evaluation."""
    corpus, run, database = work / "corpus", work / "run", work / "mlflow.db"
    corpus.mkdir()
    recipe = write_recipe(work, build_dataset(write_corpus(corpus), work / "data"))
    overrides = ["tracking.enabled=true", f"tracking.uri=sqlite:///{database}", "train.steps=24"]
    succeeded(lacuna("train", recipe, "--run", run, *overrides))
    succeeded(lacuna("evaluate", run, "--windows", "4", "--draws", "2"))
    return database, run


def _until(what: str, condition: Callable[[], bool], seconds: float = _SECONDS) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"waited {seconds:g} s for {what}")
        time.sleep(0.3)


@contextmanager
def browser() -> Iterator[Any]:
    """A headless Chromium that reaches nothing but this machine."""
    from selenium.webdriver import Chrome, ChromeOptions
    from selenium.webdriver.chrome.service import Service

    options = ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--window-size=1800,1300"):
        options.add_argument(argument)
    driver = Chrome(options=options, service=Service(str(shutil.which("chromedriver"))))
    try:
        yield driver
    finally:
        driver.quit()


def look(driver: Any, server: str, experiment: str, run: str, picture: Path) -> None:
    """Walk through the run's pages. Raises AssertionError for what does not show."""
    page = f"{server}/#/experiments/{experiment}/runs/{run}"

    def shows(*words: str) -> Callable[[], bool]:
        return lambda: all(word in driver.execute_script("return document.body.innerText") for word in words)

    driver.get(page)
    _until(
        "the run's overview with its metrics and parameters", shows("train/loss", "optimizer.lr", "FINISHED".title())
    )
    driver.get(f"{page}/model-metrics")
    _until("charts of metrics", shows("loss"))
    _until("drawn charts", lambda: driver.execute_script(_DRAWN) >= 4)
    shown = _scrolled(driver)
    missing = [name for name in _METRICS if name not in shown]
    assert not missing, f"no charts of {missing} in {shown}"
    driver.refresh()
    _until("charts of metrics again", lambda: driver.execute_script(_DRAWN) >= 4)
    search = driver.find_element("css selector", "input[placeholder='Search metric charts']")
    search.send_keys("loss|goodput")
    _until("charts of time", shows("productive_seconds"))
    time.sleep(3)  # charts come with an animation
    driver.save_screenshot(str(picture))
    _made_small(picture)
    driver.get(f"{page}/system-metrics")
    _until("charts of the machine", shows("cpu_utilization_percentage"))
    driver.get(f"{page}/artifacts/plots/loss.png")
    _until("the picture of the loss", lambda: driver.execute_script(_PICTURE) >= 800)
    _until("the list of files", shows("config.yaml", "configs", "plots", "goodput.png"))


def show(work: Path, picture: Path) -> None:
    """Train a run below `work` and look at its pages. Raises AssertionError for what does not show."""
    database, run = tracked_run(work)
    run_id = read_json(run / "tracking.json")["run_id"]
    with serving(database) as server, browser() as driver:
        look(driver, server, _experiment(server, run_id), run_id, picture)


def _made_small(picture: Path) -> None:
    """64 colours, and without the assistant's column at the right."""
    from PIL import Image

    with Image.open(picture) as image:
        small = image.convert("RGB").crop((0, 0, 1330, image.height)).quantize(64)
    small.save(picture, optimize=True)


def _scrolled(driver: Any) -> str:
    """All words of the page, from its top to its end: charts are made as they come into sight."""
    words = ""
    for _ in range(40):
        words += str(driver.execute_script("return document.body.innerText"))
        driver.execute_script(_SCROLL)
        time.sleep(0.5)
    return words


_SCROLL = (
    "[...document.querySelectorAll('*')].filter(e => e.scrollHeight > e.clientHeight + 50"
    " && ['auto', 'scroll'].includes(getComputedStyle(e).overflowY)).forEach(e => e.scrollBy(0, 500))"
)
_DRAWN = "return document.querySelectorAll('.js-plotly-plot .trace path.js-line').length"
_PICTURE = (
    "return Math.max(0, ...[...document.images].filter(i => i.complete).map(i => i.naturalWidth),"
    " ...[...document.querySelectorAll('.js-plotly-plot image')].map(() => 1600))"
)


def main() -> None:
    """Parse arguments and look."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, default=Path("docs/images/mlflow.png"))
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what it has started goes too
    if reason := missing():
        sys.exit(f"nothing is proved: {reason}")
    with tempfile.TemporaryDirectory() as folder:
        show(Path(folder), options.picture.absolute())
    print(f"MLflow's pages show the run; see {options.picture}")


def _experiment(server: str, run_id: str) -> str:
    import json
    import urllib.request

    with urllib.request.urlopen(f"{server}/api/2.0/mlflow/runs/get?run_id={run_id}", timeout=30) as answer:
        return str(json.load(answer)["run"]["info"]["experiment_id"])


if __name__ == "__main__":
    main()
