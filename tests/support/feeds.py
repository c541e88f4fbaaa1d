"""Feeds of tiny runs, as the worker wires them."""

from typing import Any

from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.objectives.autoregressive import AutoregressiveSamples
from pretrain.objectives.base import SampleObjective
from pretrain.objectives.masked import MaskedSamples
from pretrain.objectives.noise import NoiseSource
from tests.support.tiny import BOS, MASK, PAD, CountedTokens


def samples_of(config: RunConfig) -> SampleObjective:
    """The sample side of the configured objective."""
    objective, train = config.objective, config.train
    if objective.kind == "autoregressive":
        return AutoregressiveSamples(BOS)
    noise = NoiseSource(
        seed=train.seed,
        sequence_length=train.sequence_length,
        global_batch=train.global_batch,
        epsilon=objective.epsilon,
        random_length=objective.random_length,
        stratified=objective.stratified,
    )
    return MaskedSamples(noise, MASK, PAD)


def whole_feed(config: RunConfig, **place: Any) -> Feed:
    """A feed of `config`; by default of the only data rank. `place` are keywords of `Feed`."""
    train = config.train
    where = {"micro_batch": train.micro_batch, "data_rank": 0, "data_size": 1} | place
    return Feed(CountedTokens(train.sequence_length), samples_of(config), train.global_batch, **where)
