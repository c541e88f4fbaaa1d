"""The follower as a real process: it outlives dead servers, ends with its run, and does not show secrets."""

import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest

from pretrain.tracking.follow import _Sender, start_follower
from pretrain.tracking.spool import Spool

_TRAINING = """
import sys, time
from pathlib import Path
from pretrain.tracking.follow import start_follower
from pretrain.tracking.spool import Spool
run = Path(sys.argv[1])
with Spool(run / "metrics.jsonl") as spool:
    spool.write(0, {"train/loss": 9.0})
    print(start_follower(run, sys.argv[2], seconds=0.3).pid, flush=True)
    for step in range(1, 100):
        spool.write(step, {"train/loss": 1.0 / step})
        time.sleep(0.03)
"""


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _relay(port: int, target: str) -> socketserver.ThreadingTCPServer:
    """Listen on `port` and pass everything on to the server at `target`."""
    address = (urlsplit(target).hostname, urlsplit(target).port)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            with socket.create_connection(address) as onward:
                back = threading.Thread(target=_pump, args=(onward, self.request))
                back.start()
                _pump(self.request, onward)
                back.join()

    class Relay(socketserver.ThreadingTCPServer):
        daemon_threads = True
        block_on_close = False

    relay = Relay(("127.0.0.1", port), Handler)
    threading.Thread(target=relay.serve_forever, daemon=True).start()
    return relay


def _pump(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def _wait_until(done: Any, seconds: float) -> None:
    give_up = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < give_up
        time.sleep(0.05)


def _gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_it_waits_for_the_server_sends_all_and_ends_after_the_run(store: Any, run_directory: Path) -> None:
    port = _free_port()
    log = run_directory / "logs" / "tracking.log"
    (run_directory / "run.json").write_text('{"name": "x", "attempts": [{}]}')  # nobody will say how it ended
    command = [sys.executable, "-c", _TRAINING, str(run_directory), f"http://127.0.0.1:{port}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as training:
        assert training.stdout is not None
        follower = psutil.Process(int(training.stdout.readline()))
        _wait_until(lambda: b"failed" in log.read_bytes(), 30)
        with _relay(port, store.server) as relay:
            _wait_until(lambda: training.poll() is not None, 60)
            _wait_until(lambda: _gone(follower), 150)
            relay.shutdown()
    from mlflow.tracking import MlflowClient

    run_id = json.loads((run_directory / "tracking.json").read_text())["run_id"]
    client = MlflowClient(tracking_uri=store.server)
    assert client.get_run(run_id).info.status == "FAILED"
    history = client.get_metric_history(run_id, "train/loss")
    values = sorted((point.step, point.value) for point in history)
    assert values == [(0, 9.0)] + [(step, 1.0 / step) for step in range(1, 100)]
    assert log.read_text().count("failed") == 1  # said once, not at every try
    assert "Traceback" not in log.read_text()


@pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")  # MLflow's own store
def test_the_last_try_brings_the_plots_of_a_run_that_goes_on(store: Any, run_directory: Path) -> None:
    """As before a requeue: nobody says how it ended, and all points may be there already."""
    from mlflow.tracking import MlflowClient

    with Spool(run_directory / "metrics.jsonl") as spool:
        for step in range(1, 5):
            spool.write(step, {"train/loss": 1.0 / step, "tokens": step, "optim/lr": 0.1, "optim/grad_norm": 1.0})
    sender = _Sender(run_directory, store.server, "lacuna", 1.0)
    sender.tick()
    assert sender.last_try(None)
    run_id = json.loads((run_directory / "tracking.json").read_text())["run_id"]
    client = MlflowClient(tracking_uri=store.server)
    assert [file.path for file in client.list_artifacts(run_id, "plots")] == ["plots/loss.png"]
    assert client.get_run(run_id).info.status == "RUNNING"


def test_it_ends_on_sigterm_and_is_humble(run_directory: Path) -> None:
    Spool(run_directory / "metrics.jsonl").close()
    uri = f"http://me:s3cr3t@127.0.0.1:{_free_port()}"
    process = start_follower(run_directory, uri, seconds=0.2)
    try:
        follower = psutil.Process(process.pid)
        log = run_directory / "logs" / "tracking.log"
        _wait_until(lambda: b"failed" in log.read_bytes(), 30)
        assert follower.nice() == min(19, os.nice(0) + 10)
        assert "s3cr3t" not in " ".join(follower.cmdline()) + log.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=10) == 1  # MLflow does not have it all
        assert "Traceback" not in log.read_text()
        log.unlink()
    finally:
        process.kill()
        process.wait()
    process = start_follower(run_directory, uri, seconds=60)
    process.terminate()  # before it can listen: it waits, tries once, and ends
    assert process.wait(timeout=60) == 1
    assert "failed" in log.read_text()
