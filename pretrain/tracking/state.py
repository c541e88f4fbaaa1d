"""What a run directory notes about the showing to MLflow (`tracking.json`), and the lock for who does it."""

import fcntl
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from runtime.errors import UserError
from runtime.files import read_json, write_json

_PATIENCE = 10.0  # seconds to wait for another process that is forwarding the same run


@dataclass(frozen=True)
class ForwardState:
    """`tracking.json`. `key` marks the MLflow run as ours; `offset`: the byte where `last_step` starts;
    `fingerprint`: of the line of `last_step` as it was sent, empty if that is not known; `evaluations`: the
    files of evaluations that are shown, with their times.
    """

    uri: str
    experiment: str
    key: str
    run_id: str | None = None
    last_step: int = -1
    offset: int = 0
    fingerprint: str = ""
    evaluations: dict[str, float] = field(default_factory=dict)


def read_state(run_directory: Path, uri: str, experiment: str) -> ForwardState:
    """The run's state at (redacted) `uri`, a fresh one if it was never there.

    Raises UserError if the file is broken.
    """
    path = run_directory / "tracking.json"
    key = uuid.uuid4().hex
    if path.exists():
        state = _parse(path)
        if (state.uri, state.experiment) == (uri, experiment):
            return state
        key = state.key  # another server: the run keeps its key, so that it is found on coming back
    return ForwardState(uri, experiment, key)


def _parse(path: Path) -> ForwardState:
    try:
        state = ForwardState(**read_json(path))
        if state.key.isalnum() and state.last_step + state.offset >= -1 and isinstance(state.evaluations, dict):
            return state
    except (TypeError, AttributeError):
        pass
    raise UserError(f"{path} is not as it was written: remove it to send the run as a new one")


def write_state(run_directory: Path, state: ForwardState) -> None:
    """Replace `tracking.json`, atomically."""
    write_json(run_directory / "tracking.json", asdict(state))


@contextmanager
def only_forwarder(run_directory: Path) -> Iterator[None]:
    """Keep a second process from sending the same points at the same time; it waits 10 s, then UserError."""
    with open(run_directory / ".tracking.lock", "w") as lock:
        give_up = time.monotonic() + _PATIENCE
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > give_up:
                    message = f"{run_directory} is being forwarded by another process: wait for it or end it"
                    raise UserError(message) from None
                time.sleep(0.1)
            except OSError:
                break  # a file system without locks; the server still keeps the same point only once
        yield
