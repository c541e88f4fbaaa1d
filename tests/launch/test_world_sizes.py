"""A run whose world changes reads what the run that never changed reads."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from data_pipeline.config import DataConfig
from data_pipeline.dataset import SampleReader
from pretrain.batch import MicroBatch
from pretrain.feed import Feed
from pretrain.session import build_objective
from tests.support.tiny import tiny_config

LENGTH, BATCH, STEPS = 32, 24, 100
WORLDS = [4, 2, 3, 8]


@pytest.fixture(scope="module", params=["stream", "best_fit", "mixture"])
def data(request: pytest.FixtureRequest, built: Path, tmp_path_factory: pytest.TempPathFactory) -> DataConfig:
    """One dataset in two packings, and a mixture whose weights change and whose first source runs dry."""
    if request.param != "mixture":
        return DataConfig(path=str(built), packing=request.param, document_mask=request.param == "best_fit")
    copy = tmp_path_factory.mktemp("linked") / "data"
    copy.symlink_to(built)
    values = {
        "mixture": {str(built): 2.0, str(copy): 1.0},
        "segments": [{"from_sample": 100, "mixture": {str(built): 1.0, str(copy): 1.0}}],
        "max_epochs": {str(built): 1.5},
    }
    return DataConfig.parse(values, "here")


def feed(data: DataConfig, rank: int, world: int, micro_batch: int, context: tuple[int, int] = (0, 1)) -> Feed:
    config = tiny_config(
        train__sequence_length=LENGTH,
        train__global_batch=BATCH,
        model__vocabulary=300,
        data=data.model_dump(mode="json"),
    )
    reader = SampleReader(data, LENGTH, config.train.seed, global_batch=BATCH)
    objective = build_objective(config, reader.manifests[0].tokenizer)
    return Feed(reader, objective, BATCH, micro_batch, rank, world, *context)


def rows(batch: MicroBatch, first: int) -> list[tuple[int, ...]]:
    size = batch.inputs_BS.shape[0]
    bits = batch.weights_R.numpy().view(np.int32).tolist()
    return [
        (first + row % size, row // size, target, weight)
        for row, target, weight in zip(batch.rows_R.tolist(), batch.targets_R.tolist(), bits, strict=True)
    ]


def global_batch(feeds: list[Feed], step: int) -> dict[str, Any]:
    """Everything in a step's global batch, in global order."""
    found: dict[str, Any] = {"inputs": [], "rows": [], "documents": []}
    low = high = 0
    for share in (f.step(step) for f in feeds):
        for batch in share.micro_batches:
            found["rows"] += rows(batch, sum(map(len, found["inputs"])))
            found["inputs"].append(batch.inputs_BS.numpy())
            found["documents"] += [] if batch.documents_BS is None else batch.documents_BS.tolist()
        low, high = low + share.digest[0], high + share.digest[1]
    found["inputs"] = np.concatenate(found["inputs"]).tolist()
    return {**found, "rows": sorted(found["rows"]), "digest": (low % (1 << 64), high % (1 << 64))}


def test_four_two_three_and_eight_ranks_in_one_run(data: DataConfig) -> None:
    """Not all worlds divide the shards; epochs end inside steps; worlds change after any number of steps."""
    whole = feed(data, 0, 1, BATCH)
    assert isinstance(whole.reader, SampleReader)
    shards = len(whole.reader.datasets[0].shards)
    assert any(shards % world for world in WORLDS)
    borders = [STEPS * part // 4 for part in range(5)]
    ends = [whole.reader.locate(i)[1] for i in range(STEPS * BATCH)]
    assert max(ends) >= 1
    inside = [i for i in range(1, len(ends)) if ends[i] != ends[i - 1] and i % BATCH]
    assert inside  # an epoch ends in the middle of a step
    for world, (begin, end) in zip(WORLDS, itertools.pairwise(borders), strict=True):
        feeds = [feed(data, rank, world, 1 if world == 8 else 2 if world == 3 else 3) for rank in range(world)]
        for f in feeds[: world // 2]:  # some ranks of a world that was killed had the next step's batch
            f.step(begin + 1)
        for step in range(begin, end):
            assert global_batch(feeds, step) == global_batch([whole], step)


def test_an_attempt_that_ends_between_micro_batches_repeats_the_step(data: DataConfig) -> None:
    """Nothing but the number of steps is remembered, so a step half accumulated is a step not taken."""
    first = [feed(data, rank, 4, 2) for rank in range(4)]
    taken = [f.step(5).micro_batches[0] for f in first]  # one micro-batch of three each, then the node dies
    assert len(first[0].step(5).micro_batches) == 3
    second = [feed(data, rank, 2, 3) for rank in range(2)]
    found, expected = global_batch(second, 5), global_batch([feed(data, 0, 1, BATCH)], 5)
    assert found == expected
    for rank, batch in enumerate(taken):
        assert batch.inputs_BS.tolist() == expected["inputs"][rank * 6 : rank * 6 + 2]
