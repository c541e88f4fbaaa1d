"""Golden values: what noise, weights, batches and job scripts must stay, so that a change of them is noticed.

A run continued by code that draws other noise is another run. After a wanted change, write the files anew with

    python -m tests.golden.regenerate

from the project's root, and say in the change log that runs of earlier versions cannot be continued.
"""

import json
from pathlib import Path
from typing import Any

from launch.slurm.script import render
from parallel.logical import Rectangle
from pretrain.initialise import initial_values
from pretrain.objectives.noise import NoiseSource
from runtime.files import digest_bytes
from tests.support.feeds import whole_feed
from tests.support.reference_model import logical_shapes
from tests.support.slurm_jobs import golden_jobs
from tests.support.tiny import tiny_config

_NOISE_CASES: list[dict[str, Any]] = [
    {"seed": 0, "sequence_length": 24, "global_batch": 8, "epsilon": 1e-3, "random_length": 0.0, "stratified": True},
    {"seed": 7, "sequence_length": 24, "global_batch": 8, "epsilon": 1e-3, "random_length": 0.5, "stratified": False},
    {
        "seed": 2**64 - 1,
        "sequence_length": 17,
        "global_batch": 1280,
        "epsilon": 1e-3,
        "random_length": 0.01,
        "stratified": True,
    },
]
_INDICES = [0, 1, 7, 8, 1_000_000, 2**40 + 3]


def noise_values() -> list[dict[str, Any]]:
    """Draws of a few sources; levels as exact hexadecimal floats, masks as a digit a position."""
    values = []
    for case in _NOISE_CASES:
        for index in _INDICES:
            noise = NoiseSource(**case).draw(index)
            masked = "".join("01"[int(m)] for m in noise.masked)
            drawn = {"index": index, "level": noise.level.hex(), "length": noise.length, "masked": masked}
            values.append({"source": case, **drawn})
    return values


def weight_values() -> dict[str, str]:
    """xxh3-128 of the float32 bytes of every initial weight of a small model."""
    config = tiny_config(model__kv_heads=2, model__vocabulary=300)  # more rows than one draw
    digests = {}
    for name, size in logical_shapes(config.model).items():
        whole = Rectangle((0,) * len(size), size)
        values = initial_values(name, size, whole, config.model, config.train.seed)
        digests[name] = digest_bytes(values.numpy().tobytes())
    return digests


def batch_values() -> dict[str, list[str]]:
    """Digests of the first global batches of two tiny runs."""
    found = {}
    for objective in ("masked", "autoregressive"):
        feed = whole_feed(tiny_config(objective))
        found[objective] = ["{:016x}{:016x}".format(*reversed(feed.step(step).digest)) for step in range(3)]
    return found


GOLDEN = {"noise.json": noise_values, "weights.json": weight_values, "batches.json": batch_values}


def read_golden(name: str) -> Any:
    """The stored values."""
    return json.loads((Path(__file__).parent / name).read_text())


def main() -> None:
    """Write every golden file."""
    for name, values in GOLDEN.items():
        (Path(__file__).parent / name).write_text(json.dumps(values(), indent=1) + "\n")
    for name, job in golden_jobs().items():
        (Path(__file__).parent / f"{name}.sbatch").write_text(render(job))


if __name__ == "__main__":
    main()
