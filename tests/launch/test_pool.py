"""Jobs of a pool: so many at a time, named failures, a polite stop, no orphans."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from launch.pool import Job, run_jobs, why_failed
from runtime.signals import StopRequest

MODULE = "tests.support.pooled_job"


def job(folder: Path, name: str, order: str) -> Job:
    root = folder / name
    root.mkdir()
    (root / "order").write_text(order)
    return Job(name, MODULE, root, root / "log")


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    give_up = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.02)


def test_every_job_ends_with_its_code_and_a_failure_is_one_line(tmp_path: Path) -> None:
    orders = {"a": "go", "b": "fail", "c": "go"}
    jobs = [job(tmp_path, name, order) for name, order in orders.items()]
    running: list[int] = []

    def look() -> None:
        running.append(sum((one.root / "began").exists() and not (one.root / "ended").exists() for one in jobs))

    found = {one.name: code for one, code in run_jobs(iter(jobs), 1, StopRequest(), look)}
    assert found == {"a": 0, "b": 2, "c": 0}
    assert list(found) == list(orders)  # one at a time, in order
    assert running
    assert max(running) <= 2  # the failed one counts on
    assert why_failed(jobs[1], 2) == f"it was told to fail; see {jobs[1].log}"
    assert why_failed(jobs[0], 0) == f"ended with code 0; see {jobs[0].log}"


def test_a_stop_ends_what_runs_politely_and_starts_nothing_more(tmp_path: Path) -> None:
    jobs = [job(tmp_path, name, "wait") for name in "abc"]

    def stop_when_two_run() -> None:
        wait_for(lambda: all((one.root / "began").exists() for one in jobs[:2]))
        os.kill(os.getpid(), signal.SIGTERM)

    with StopRequest() as stop:
        killer = threading.Thread(target=stop_when_two_run)
        killer.start()
        assert list(run_jobs(jobs, 2, stop)) == []
        killer.join()
    assert [(one.root / "ended").exists() for one in jobs] == [True, True, False]
    assert (jobs[0].root / "ended").read_text() == "stopped"


def test_jobs_end_with_a_pool_that_was_killed(tmp_path: Path) -> None:
    one = job(tmp_path, "a", "wait")
    pool = f"""
from pathlib import Path
from launch.pool import Job, run_jobs
from runtime.signals import StopRequest
list(run_jobs([Job("a", {MODULE!r}, Path({str(one.root)!r}), Path({str(one.log)!r}))], 1, StopRequest()))
"""
    with subprocess.Popen([sys.executable, "-c", pool]) as process:
        wait_for((one.root / "began").exists)
        process.kill()
    wait_for((one.root / "ended").exists)
    assert (one.root / "ended").read_text() == "stopped"


def test_a_job_without_a_pool_outlives_its_parent(tmp_path: Path) -> None:
    """Under Slurm the parent may be a container's, which is not the script."""
    one = job(tmp_path, "a", "wait")
    command = [sys.executable, "-m", MODULE, str(one.root)]
    starter = f"import subprocess; print(subprocess.Popen({command!r}, stdout=subprocess.DEVNULL).pid)"
    pid = int(subprocess.run([sys.executable, "-c", starter], stdout=subprocess.PIPE, check=True, text=True).stdout)
    try:
        wait_for((one.root / "began").exists)
        time.sleep(1.5)  # longer than a pool's jobs take to look for it
        assert not (one.root / "ended").exists()
    finally:
        os.kill(pid, signal.SIGTERM)
    wait_for((one.root / "ended").exists)
