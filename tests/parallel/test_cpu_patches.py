"""The patches for machines without CUDA, in an interpreter of their own: they are made once in a process."""

import subprocess
import sys

from tests.support.simulated import needs_cpu

pytestmark = needs_cpu
_DEEPSPEED_CAME_FIRST = """
import deepspeed
import torch
from pretrain.build import build_engine
from tests.support.simulated import single_process
from tests.support.tiny import tiny_config
config = tiny_config(parallel__engine="deepspeed", parallel__zero=3)
with single_process(config) as mesh:
    build_engine(config, mesh)
assert torch.tensor([1.0], device="cuda").device.type == "cpu"
with single_process(tiny_config()) as mesh:
    build_engine(tiny_config(), mesh)
"""


def test_they_outlive_zero_3_although_deepspeed_was_imported_before_them() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _DEEPSPEED_CAME_FIRST]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]


_GROUPS = """
import os
import time
import torch.distributed as dist
from tests.support.simulated import single_process
from tests.support.tiny import tiny_config

def loops():
    time.sleep(1.0)  # a thread names itself, some time after it was started
    tasks = f"/proc/{os.getpid()}/task"
    return [open(f"{tasks}/{task}/comm").read() for task in os.listdir(tasks)].count("gloo_tcp_loop\\n")

with single_process(tiny_config()):
    groups = [dist.new_group([0]) for _ in range(5)]
    assert loops() == 1
    if (child := os.fork()) == 0:
        group = dist.new_group([0])
        os._exit(loops() != 1)
    assert os.waitpid(child, 0)[1] == 0
"""


def test_gloo_groups_share_one_polling_thread_and_a_fork_has_its_own() -> None:
    command = [sys.executable, "-W", "ignore", "-c", _GROUPS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 0, ended.stderr[-2000:]
