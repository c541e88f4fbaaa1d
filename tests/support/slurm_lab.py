"""A real Slurm on this one machine: munged, slurmctld and some slurmd, each of them a "node".

Needs root and Debian's `slurm-wlm` and `munge`; changes nothing outside its folder. A node is a slurmd with its
port and spool. Node names do not resolve, as on many real clusters. The clocks are short, so that what takes Slurm
minutes is seen in a test's time.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

from tests.support.ports import free_ports

_PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED", "BOOT_FAIL", "DEADLINE")

_SLURM_CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={root}/munge/socket,cred_expire=5
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.%n.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.%n.log
MailProg=/bin/true
PlugStackConfig=/dev/null
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=2,bf_continue
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
GresTypes=gpu
DefMemPerCPU=100
PriorityType=priority/basic
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preempt_warning}
AccountingStorageType=accounting_storage/none
SlurmctldTimeout=10
SlurmdTimeout=8
MessageTimeout=5
TCPTimeout=2
BatchStartTimeout=10
KillWait={kill_wait}
MinJobAge=7200
ReturnToService=2
TreeWidth=65533
Prolog={root}/prolog.sh
PrologFlags=Alloc
SlurmdParameters=config_overrides
NodeName=node[1-{nodes}] NodeHostname=localhost NodeAddr=127.0.0.1 Port=[{first}-{last}] Sockets=1 \
CoresPerSocket=8 ThreadsPerCore=1 RealMemory=16000 Gres=gpu:h200:8 Feature=h200 State=UNKNOWN
PartitionName=train Nodes=ALL Default=YES DefaultTime=10 MaxTime=120 PriorityTier=10 PreemptMode=OFF State=UP
PartitionName=preempt Nodes=ALL DefaultTime=10 MaxTime=120 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 State=UP
"""


def missing() -> str:
    """Why there can be no lab here, or an empty string."""
    if os.geteuid() != 0:
        return "Slurm's daemons need root"
    absent = [name for name in _PROGRAMS if shutil.which(name) is None]
    return f"{', '.join(absent)} not installed (apt-get install slurm-wlm munge)" if absent else ""


def wait_for(what: str, condition: Callable[[], bool], seconds: float) -> None:
    """Poll until `condition` holds. Raises TimeoutError naming `what`."""
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up:
            raise TimeoutError(f"{what}: not within {seconds:g} s")
        time.sleep(0.3)


class SlurmLab:
    """The lab in folder `root`, a short path (sockets). `with SlurmLab(root) as lab:` starts and ends it."""

    def __init__(self, root: Path, nodes: int = 3, kill_wait: int = 5, preempt_warning: bool = True) -> None:
        """`preempt_warning`: whether the script hears of a preemption, as a site may set it; else only steps do."""
        self.root, self.names = root, [f"node{i + 1}" for i in range(nodes)]
        port = free_ports(nodes + 1)
        for folder in ("munge", "state", "spool", "gpu", "bad-prolog"):
            (root / folder).mkdir(parents=True)
        root.chmod(0o755)
        (root / "munge").chmod(0o755)
        self._key()
        for number in range(8):  # slurmd only looks at them
            os.mknod(root / f"gpu/nvidia{number}", 0o600 | 0o020000, os.makedev(1, 3))
        prolog = root / "prolog.sh"
        prolog.write_text(f'#!/bin/sh\n[ ! -e "{root}/bad-prolog/$SLURMD_NODENAME" ]\n')
        prolog.chmod(0o755)
        self.conf = root / "slurm.conf"
        self.conf.write_text(
            _SLURM_CONF.format(
                root=root,
                host=socket.gethostname().partition(".")[0],
                port=port,
                nodes=nodes,
                first=port + 1,
                last=port + nodes,
                kill_wait=kill_wait,
                preempt_warning="SlurmctldParameters=preempt_send_user_signal" if preempt_warning else "",
            )
        )
        gres = f"NodeName=node[1-{nodes}] Name=gpu Type=h200 File={root}/gpu/nvidia[0-7]"
        (root / "gres.conf").write_text(f"AutoDetect=off\n{gres}\n")
        code = str(Path(__file__).resolve().parents[2])
        self.environment = os.environ | {
            "SLURM_CONF": str(self.conf),
            "PYTHONPATH": code,
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "XDG_STATE_HOME": str(root / "home"),
        }

    def _key(self) -> None:
        key = self.root / "munge/key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)

    def __enter__(self) -> SlurmLab:
        munge = self.root / "munge"
        names = {"socket": "socket", "key-file": "key", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        try:
            self.run("munged", *(f"--{option}={munge / name}" for option, name in names.items()))
            self.start_controller()
            for name in self.names:
                self.start_slurmd(name)
            wait_for("nodes of the lab", lambda: all(self.node_state(n).startswith("IDLE") for n in self.names), 60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            self.power_off(name)
        self._end("slurmctld.pid")
        self._end("munge/pid")
        shutil.rmtree(self.root, ignore_errors=True)

    def run(self, *command: str, check: bool = True) -> str:
        """Standard output of a command with the lab's configuration."""
        result = subprocess.run(command, capture_output=True, text=True, env=self.environment, timeout=60, check=False)
        assert result.returncode == 0 or not check, f"{command}: {result.stderr}"
        return result.stdout

    def lacuna(
        self, *arguments: str | Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `lacuna ARGUMENTS…` as a user of this cluster."""
        command = [sys.executable, "-m", "launch.cli", *map(str, arguments)]
        variables = self.environment | dict(environment or {})
        return subprocess.run(
            command, capture_output=True, text=True, env=variables, timeout=240, check=False, stdin=subprocess.DEVNULL
        )

    def start_controller(self) -> None:
        """Start slurmctld with the state it has."""
        self.run("slurmctld", "-f", str(self.conf))

    def kill_controller(self) -> None:
        """`kill -9`, as a crash."""
        process = self._process("slurmctld.pid")
        assert process is not None
        process.kill()
        wait_for("death of slurmctld", lambda: not process.is_running(), 10)

    def start_slurmd(self, node: str) -> None:
        """Start a node's daemon, as a boot does."""
        (self.root / "spool" / node).mkdir(exist_ok=True)
        clean = {"PATH": _PATH, "SLURM_CONF": str(self.conf)}
        subprocess.run(["slurmd", "-N", node, "-f", str(self.conf)], env=clean, check=True, timeout=60)

    def kill_slurmd(self, node: str) -> None:
        """The daemon only: its tasks live on, and nobody can tell them anything."""
        process = self._process(f"slurmd.{node}.pid")
        if process is not None:
            process.kill()

    def power_off(self, node: str) -> None:
        """All processes of the node at once; nobody is told. Frozen first, or one could report another's death."""
        found = [p for p in (self._process(f"slurmd.{node}.pid"), *self.processes(node)) if p is not None]
        for act in (psutil.Process.suspend, psutil.Process.kill):
            for process in found:
                with suppress(psutil.NoSuchProcess):
                    act(process)

    def processes(self, node: str) -> list[psutil.Process]:
        """Step daemons of the node, known by the log they write (their title hides their environment), and tasks."""
        log, found = str(self.root / f"slurmd.{node}.log"), []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                variables = process.environ()
                ours = variables.get("SLURM_CONF") == str(self.conf) and variables.get("SLURMD_NODENAME") == node
                daemon = process.name() == "slurmstepd" and any(file.path == log for file in process.open_files())
                if ours or daemon:
                    found.append(process)
        return found

    def node_state(self, node: str) -> str:
        """For instance `IDLE`, `MIXED`, `IDLE+DRAIN`."""
        return self._field(self.run("scontrol", "show", "node", node, check=False), "State")

    def job(self, job: str, field: str) -> str:
        """A field of `scontrol show job`."""
        return self._field(self.run("scontrol", "show", "job", job, check=False), field)

    def seconds_running(self, job: str) -> int:
        """How long the present start of a job has run; less than an hour here."""
        minutes, seconds = self.job(job, "RunTime").split(":")[1:]
        return 60 * int(minutes) + int(seconds)

    def restarts(self, job: str) -> int:
        """How often a job has been requeued."""
        return int(self.job(job, "Restarts") or 0)

    @staticmethod
    def _field(text: str, name: str) -> str:
        values = [word.partition("=")[2] for word in text.split() if word.startswith(f"{name}=")]
        return values[0] if values else ""

    def wait_for_end(self, job: str, seconds: float = 400) -> str:
        """The state in which a job ended."""
        wait_for(f"end of job {job}", lambda: self.job(job, "JobState") in _ENDED, seconds)
        return self.job(job, "JobState")

    def cancel_all(self) -> None:
        """Remove every job and wait until the nodes are free."""
        self.run("scancel", "--user=root", check=False)
        wait_for("an empty queue", lambda: not self.run("squeue", "-h", check=False).strip(), 60)

    def _process(self, pid_file: str) -> psutil.Process | None:
        with suppress(OSError, ValueError, psutil.Error):
            process = psutil.Process(int((self.root / pid_file).read_text()))
            if any(str(self.root) in word for word in process.cmdline()):  # a number used again is not ours
                return process
        return None

    def _end(self, pid_file: str) -> None:
        process = self._process(pid_file)
        if process is not None:
            process.send_signal(signal.SIGTERM)
            with suppress(psutil.TimeoutExpired):
                process.wait(5)
            with suppress(psutil.NoSuchProcess):
                process.kill()
