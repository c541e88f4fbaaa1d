"""What NVIDIA's driver says of the GPUs of this machine: memory errors, faults, throttling."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from xml.etree import ElementTree

from launch.doctor.report import Problem
from runtime.errors import one_line

_SECONDS = 60.0
_XID = re.compile(r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f:.]+)\): (\d+)")
_SLOWED = re.compile(r"clocks_\w+_reason_hw_(slowdown|thermal_slowdown|power_brake_slowdown)")
# hardware, driver or link, by NVIDIA's catalogue of XIDs; others (13, 31, 43, 45 …) come from programs
_FATAL_XIDS = {48, 62, 63, 64, 74, 79, 92, 94, 95, 109, 110, 119, 120, 136, 140, 143}


def gpu_problems() -> list[Problem]:
    """None where there is no `nvidia-smi`."""
    if shutil.which("nvidia-smi") is None:
        return []
    try:
        result = _run("nvidia-smi", "-q", "-x")
    except (OSError, subprocess.TimeoutExpired) as error:
        return [Problem("gpu", f"nvidia-smi does not answer: {one_line(error)}")]
    if result.returncode:
        said = one_line(Exception(result.stdout.strip() or result.stderr.strip() or "no word"))
        return [Problem("gpu", f"nvidia-smi ended with code {result.returncode}: {said:.200}")]
    return [*parse_smi(result.stdout), *_xids()]


def parse_smi(text: str) -> list[Problem]:
    """Problems in the output of `nvidia-smi -q -x`; names of its elements vary with the driver's version."""
    try:
        root = ElementTree.fromstring(text)  # noqa: S314 - of a program of this machine
    except ElementTree.ParseError as error:
        return [Problem("gpu", f"nvidia-smi's answer cannot be read: {error}")]
    return [
        Problem("gpu", f"GPU {number} ({gpu.get('id', '?')}) {text}")
        for number, gpu in enumerate(root.iter("gpu"))
        for text in _of_gpu(gpu)
    ]


def _of_gpu(gpu: ElementTree.Element) -> Iterator[str]:
    for volatile in gpu.iter("volatile"):
        for element in volatile.iter():
            count = (element.text or "").strip()
            if "uncorrectable" in element.tag and count.isdecimal() and int(count):
                yield f"has {count} uncorrectable memory errors ({element.tag})"
    for element in gpu.iter():
        said = (element.text or "").strip()
        if element.tag in ("remapped_row_failure", "remapped_row_pending") and said == "Yes":
            yield f"has a {element.tag.replace('_', ' ')}: it needs a reset, or goes back to its maker"
        if element.tag in ("pending_blacklist", "pending_retirement") and said == "Yes":
            yield "has memory pages to be retired: it needs a reset"
        if said == "Active" and _SLOWED.fullmatch(element.tag):
            yield f"is slowed down ({element.tag.partition('_reason_')[2]})"


def parse_xids(text: str) -> list[Problem]:
    """Faults that the driver has noted in the kernel's log; each GPU and number once."""
    found = {(bus, int(number)) for bus, number in _XID.findall(text)}
    return [Problem("gpu", f"GPU {bus} had XID {number}") for bus, number in sorted(found) if number in _FATAL_XIDS]


def _xids() -> list[Problem]:
    for command in (["journalctl", "--dmesg", "--since=-24h", "--no-pager"], ["dmesg"]):
        try:
            result = _run(*command)
        except (OSError, subprocess.TimeoutExpired):
            continue
        if result.returncode == 0:
            return parse_xids(result.stdout)
    return []  # the kernel's log is for root there


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_SECONDS, check=False, stdin=subprocess.DEVNULL
    )
