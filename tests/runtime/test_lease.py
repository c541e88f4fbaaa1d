"""Who may write into a run directory: processes that live, die, sleep and wake up again, and lies in the claims."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from runtime.claims import Holder, claim_path, make_claim, newest_claim
from runtime.errors import UserError
from runtime.lease import Lease, LeaseConfig, LeaseLost
from runtime.machine import machine_name, process_start, runs_here

QUICK = LeaseConfig(heartbeat=0.1, stale=0.4)

_HOLD = """
import sys, time
from pathlib import Path
from runtime.errors import LacunaError
from runtime.lease import Lease, LeaseConfig
root = Path(sys.argv[1])
lease = Lease.acquire(root, LeaseConfig(heartbeat=0.1, stale=0.4))
with lease.kept(0.1):
    print("holds", lease.token, flush=True)
    for line in sys.stdin:
        try:
            lease.check()
            (root / "published").write_text(line)
            print("published", flush=True)
        except LacunaError as error:
            print(type(error).__name__, error, flush=True)
lease.release()
print("released", flush=True)
"""


class Attempt:
    """A process that holds a run and publishes on command."""

    def __init__(self, root: Path, **environment: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", _HOLD, str(root)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
        )
        assert self.answer().startswith("holds ")

    def answer(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().rstrip("\n")

    def publish(self, word: str) -> str:
        assert self.process.stdin is not None
        self.process.stdin.write(word + "\n")
        self.process.stdin.flush()
        return self.answer()

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def end(self) -> str:
        """Let it come to its own end."""
        out, _ = self.process.communicate(timeout=20)
        return out


@pytest.fixture
def started() -> Iterator[list[Attempt]]:
    """Attempts that must not outlive the test."""
    attempts: list[Attempt] = []
    yield attempts
    for attempt in attempts:
        attempt.process.kill()
        attempt.process.communicate()


def pretend(root: Path, **changes: Any) -> dict[str, Any]:
    """Change what the newest claim says."""
    claim = newest_claim(root)
    assert claim is not None
    said: dict[str, Any] = json.loads(claim.path.read_text()) | changes
    claim.path.write_text(json.dumps(said))
    return said


def age(root: Path, seconds: float) -> None:
    """Let the newest claim look as if it was last touched so long ago."""
    claim = newest_claim(root)
    assert claim is not None
    os.utime(claim.path, ns=(0, time.time_ns() - int(seconds * 1e9)))


def claims(root: Path) -> list[str]:
    return sorted(os.listdir(root / "lease"))


def test_a_second_process_is_refused_and_told_who_holds_the_run(tmp_path: Path, started: list[Attempt]) -> None:
    started.append(Attempt(tmp_path, SLURM_JOB_ID="41", SLURM_RESTART_COUNT="2"))
    said = json.loads(claim_path(tmp_path, 1).read_text())
    with pytest.raises(UserError) as refused:
        Lease.acquire(tmp_path, QUICK)
    holder = f"job 41 restart 2, process {started[0].process.pid} on {said['host']}, since {said['since']}"
    assert f"{tmp_path} is being trained by another process ({holder}, last heartbeat " in str(refused.value)
    assert refused.value.exit_code == 2
    assert started[0].publish("mine") == "published"
    assert claims(tmp_path) == ["00000001.json"]
    assert started[0].end() == "released\n"
    assert Lease.acquire(tmp_path, QUICK).token == 2
    assert claims(tmp_path) == ["00000002.json"]


def test_a_killed_holder_is_followed_at_once(tmp_path: Path, started: list[Attempt]) -> None:
    started.append(Attempt(tmp_path))
    started[0].process.kill()
    os.waitid(os.P_PID, started[0].process.pid, os.WEXITED | os.WNOWAIT)  # a zombie now
    lease = Lease.acquire(tmp_path, LeaseConfig())
    assert lease.token == 2
    assert lease.held()


def test_a_recycled_process_number_is_not_the_holder(tmp_path: Path) -> None:
    """This process has the number, but it started at another time."""
    Lease.acquire(tmp_path, QUICK)
    with pytest.raises(UserError, match="is being trained by another process"):
        Lease.acquire(tmp_path, QUICK)
    pretend(tmp_path, started=(process_start(os.getpid()) or 0) + 1)
    assert Lease.acquire(tmp_path, QUICK).token == 2


def test_a_restarted_job_follows_its_sleeping_orphan_which_publishes_nothing(
    tmp_path: Path, started: list[Attempt]
) -> None:
    started.append(Attempt(tmp_path, SLURM_JOB_ID="7"))
    assert started[0].publish("first") == "published"
    started[0].send(signal.SIGSTOP)
    started.append(Attempt(tmp_path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT="1"))
    assert started[1].publish("second") == "published"
    started[0].send(signal.SIGCONT)
    answer = started[0].publish("orphan")
    assert answer.startswith(f"LeaseLost {tmp_path} was taken over by a later attempt (job 7 restart 1, process ")
    assert (tmp_path / "published").read_text() == "second\n"
    assert started[0].end() == "released\n"
    assert started[1].publish("again") == "published"  # the orphan's release released nothing
    assert claims(tmp_path) == ["00000002.json"]


def test_an_orphan_that_wakes_after_its_heirs_are_gone_too(tmp_path: Path, started: list[Attempt]) -> None:
    started.append(Attempt(tmp_path, SLURM_JOB_ID="7"))
    started[0].send(signal.SIGSTOP)
    for restart in ("1", "2"):
        started.append(Attempt(tmp_path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=restart))
        assert started[-1].end() == "released\n"
    started[0].send(signal.SIGCONT)
    time.sleep(0.3)  # its heartbeat comes back to life first
    assert started[0].publish("orphan").startswith("LeaseLost")
    assert not (tmp_path / "published").exists()
    assert claims(tmp_path) == ["00000003.json"]


@pytest.mark.parametrize("changes", [{"machine": "another one"}, {"machine": ""}, {"pid": 0}, {"nonsense": 1}])
def test_a_holder_that_cannot_be_looked_at_is_judged_by_its_heartbeat(tmp_path: Path, changes: dict[str, Any]) -> None:
    first = Lease.acquire(tmp_path, QUICK)
    pretend(tmp_path, **changes)
    with pytest.raises(UserError, match="is being trained by another process"):
        Lease.acquire(tmp_path, LeaseConfig())  # it was alive a moment ago
    age(tmp_path, 10)
    began = time.monotonic()
    assert Lease.acquire(tmp_path, QUICK).token == 2
    assert time.monotonic() - began >= QUICK.stale / 4  # it was watched
    with pytest.raises(LeaseLost):
        first.check()


@pytest.mark.parametrize("apart", [10.0, -3600.0])
def test_a_heartbeat_seen_while_watching_counts_whatever_the_clocks_say(tmp_path: Path, apart: float) -> None:
    """The file's time says that the holder is silent for long, or is from the future, but its counter moves."""
    Lease.acquire(tmp_path, QUICK)
    pretend(tmp_path, machine="another one")
    age(tmp_path, apart)
    claim = newest_claim(tmp_path)
    assert claim is not None

    def beat() -> None:
        time.sleep(0.05)
        pretend(tmp_path, beat=99)
        os.utime(claim.path, ns=(0, claim.mtime))

    beating = threading.Thread(target=beat)
    beating.start()
    with pytest.raises(UserError, match="is being trained by another process"):
        Lease.acquire(tmp_path, LeaseConfig(heartbeat=0.1, stale=2))
    beating.join()


def test_a_dead_holder_from_the_future_is_followed_after_a_whole_period(tmp_path: Path) -> None:
    Lease.acquire(tmp_path, QUICK)
    pretend(tmp_path, machine="another one")
    age(tmp_path, -3600)
    began = time.monotonic()
    assert Lease.acquire(tmp_path, QUICK).token == 2
    assert time.monotonic() - began >= QUICK.stale


@pytest.mark.parametrize("restart", [("1", "1"), ("2", "1"), ("1", None)])
def test_only_a_later_start_of_the_same_job_is_let_in(
    tmp_path: Path, started: list[Attempt], monkeypatch: pytest.MonkeyPatch, restart: tuple[str, str | None]
) -> None:
    started.append(Attempt(tmp_path, SLURM_JOB_ID="7", SLURM_RESTART_COUNT=restart[0]))
    monkeypatch.setenv("SLURM_JOB_ID", "7" if restart[1] else "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", restart[1] or "5")
    with pytest.raises(UserError, match="job 7 restart"):
        Lease.acquire(tmp_path, QUICK)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"pid": -1}', b"\xff\x00" * 300, b"[" * 100_000, b'"' + b"x" * 200_000]
)
def test_claims_that_are_no_claims(tmp_path: Path, content: bytes) -> None:
    first = Lease.acquire(tmp_path, QUICK)
    path = claim_path(tmp_path, 5)
    path.write_bytes(content)
    with pytest.raises(LeaseLost, match=r"00000005\.json"):
        first.check()
    with pytest.raises(UserError, match=r"another process \(see .*00000005\.json\)"):
        Lease.acquire(tmp_path, QUICK)
    age(tmp_path, 10)
    assert Lease.acquire(tmp_path, QUICK).token == 6
    assert claims(tmp_path) == ["00000006.json"]


@pytest.mark.parametrize("thing", ["pipe", "link", "loop", "directory"])
def test_things_in_the_place_of_a_claim(tmp_path: Path, thing: str) -> None:
    """None may hang the process, be followed, or be written through."""
    path, victim = claim_path(tmp_path, 5), tmp_path / "victim"
    path.parent.mkdir()
    victim.write_text("mine")
    if thing == "pipe":
        os.mkfifo(path)
    elif thing == "directory":
        path.mkdir()
    else:
        path.symlink_to(victim if thing == "link" else path)
    os.utime(path, ns=(0, 0), follow_symlinks=False)
    lease = Lease.acquire(tmp_path, QUICK)
    assert lease.token == 6
    lease.check()
    assert victim.read_text() == "mine"


@pytest.mark.parametrize(
    "name", ["1.json", "000000001.json", "-0000001.json", "٠٠٠٠٠٠٠١.json", "00000001.json.bak", "x"]
)
def test_other_names_are_no_claims(tmp_path: Path, name: str) -> None:
    (tmp_path / "lease").mkdir()
    (tmp_path / "lease" / name).write_text("{}")
    assert newest_claim(tmp_path) is None
    assert Lease.acquire(tmp_path, QUICK).token == 1


def test_numbers_that_are_used_up(tmp_path: Path) -> None:
    (tmp_path / "lease").mkdir()
    claim_path(tmp_path, 99_999_999).write_text("")
    age(tmp_path, 10)
    with pytest.raises(UserError, match="has no number left after 99999999: remove that directory"):
        Lease.acquire(tmp_path, QUICK)


def test_control_characters_do_not_reach_the_terminal(tmp_path: Path) -> None:
    from runtime.errors import one_line

    Lease.acquire(tmp_path, QUICK)
    pretend(tmp_path, host="\x1b[2Jevil\nhost")
    with pytest.raises(UserError) as refused:
        Lease.acquire(tmp_path, QUICK)
    assert one_line(refused.value).isprintable()


def test_a_claim_written_over_in_its_place_is_read_again(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path, QUICK)
    lease.check()
    time.sleep(0.05)  # beyond a tick of the file system's clock
    path = claim_path(tmp_path, 1)
    nonce = json.loads(path.read_text())["nonce"]
    path.write_text(path.read_text().replace(nonce, nonce[::-1]))  # as long as before
    with pytest.raises(LeaseLost, match="taken over"):
        lease.check()


def test_a_removed_directory_ends_the_attempt_also_if_its_number_comes_again(tmp_path: Path) -> None:
    first = Lease.acquire(tmp_path, QUICK)
    claim_path(tmp_path, 1).unlink()
    with pytest.raises(LeaseLost, match=r"lease was removed"):
        first.check()
    with first.kept(0.01):
        time.sleep(0.1)
    assert claims(tmp_path) == []  # a heartbeat must not bring the claim back
    second = Lease.acquire(tmp_path, QUICK)
    assert second.token == first.token
    with pytest.raises(LeaseLost, match="taken over"):
        first.check()
    first.release()
    second.check()


def test_of_many_at_once_one_wins(tmp_path: Path) -> None:
    """All think that number 1 is free; each of 8 threads counts as a process of its own here."""
    won: list[int | None] = []
    (tmp_path / "lease").mkdir()
    ready = threading.Barrier(8)

    def claim() -> None:
        ready.wait()
        won.append(make_claim(tmp_path, None, Holder.this_process()))

    threads = [threading.Thread(target=claim) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(won, key=str) == [1] + [None] * 7


def test_a_claim_made_from_old_knowledge_is_withdrawn(tmp_path: Path) -> None:
    """It was judged free, then two others came and went before it was followed."""
    Lease.acquire(tmp_path, QUICK).release()
    old = newest_claim(tmp_path)
    for _ in range(2):
        last = Lease.acquire(tmp_path, QUICK)
        last.release()
    assert make_claim(tmp_path, old, Holder.this_process()) is None
    assert claims(tmp_path) == [f"{last.token:08d}.json"]


def test_the_claimant_hands_over_to_another_process(tmp_path: Path) -> None:
    launcher = Lease.acquire(tmp_path, QUICK)
    pretend(tmp_path, pid=1, started=1)
    rank = Lease.adopt(tmp_path, launcher.token)
    said = json.loads(claim_path(tmp_path, 1).read_text())
    assert (said["pid"], said["started"], said["beat"]) == (os.getpid(), process_start(os.getpid()), 1)
    launcher.check()
    rank.check()
    launcher.release()
    said = json.loads(claim_path(tmp_path, 1).read_text())
    assert (said["released"], said["beat"]) == (True, 2)
    Lease.acquire(tmp_path, QUICK)
    with pytest.raises(LeaseLost):
        Lease.adopt(tmp_path, launcher.token)


def test_heartbeats_are_shown_and_end(tmp_path: Path) -> None:
    lease = Lease.acquire(tmp_path, QUICK)
    with lease.kept(0.02):
        end = time.monotonic() + 20
        while json.loads(claim_path(tmp_path, 1).read_text())["beat"] < 3:
            assert time.monotonic() < end
    assert [thread.name for thread in threading.enumerate() if "lease" in thread.name] == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match=r"file cannot be written \(Not a directory\): mend that"):
        Lease.acquire(tmp_path / "file", QUICK)


def test_stale_must_leave_room_for_heartbeats() -> None:
    with pytest.raises(UserError, match=r"lease: stale=30 is less than 4 × heartbeat=15: set 60|stale=30 is less"):
        LeaseConfig.parse({"stale": 30}, "lease")


def test_processes_of_this_machine(tmp_path: Path) -> None:
    start = process_start(os.getpid())
    assert start is not None
    assert runs_here(os.getpid(), start)
    assert not runs_here(os.getpid(), start + 1)
    assert machine_name() == machine_name() != ""
    sleeper = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    began = process_start(sleeper.pid)
    assert began is not None
    assert runs_here(sleeper.pid, began)
    sleeper.kill()
    os.waitid(os.P_PID, sleeper.pid, os.WEXITED | os.WNOWAIT)
    assert not runs_here(sleeper.pid, began)
    sleeper.communicate()
    assert not runs_here(sleeper.pid, began)
    assert process_start(sleeper.pid) is None
