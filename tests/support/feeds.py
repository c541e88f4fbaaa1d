"""Feeds of tiny runs, as the worker wires them."""

from typing import Any

from data_pipeline.files import FileInfo
from data_pipeline.manifest import TokenizerInfo
from pretrain.config import RunConfig
from pretrain.feed import Feed
from pretrain.objectives.base import SampleObjective
from pretrain.session import build_objective
from tests.support.tiny import BOS, MASK, PAD, VOCABULARY, CountedTokens

_TOKENIZER = TokenizerInfo(
    file=FileInfo(name="unused", bytes=0, digest="0" * 32),
    vocabulary=VOCABULARY,
    pad_id=PAD,
    bos_id=BOS,
    eos_id=BOS,
    mask_id=MASK,
)


def samples_of(config: RunConfig) -> SampleObjective:
    """The sample side of the configured objective."""
    return build_objective(config, _TOKENIZER)


def whole_feed(config: RunConfig, **place: Any) -> Feed:
    """A feed of `config`; by default of the only data rank. `place` are keywords of `Feed`."""
    train = config.train
    where = {"micro_batch": train.micro_batch, "data_rank": 0, "data_size": 1} | place
    return Feed(CountedTokens(train.sequence_length), samples_of(config), train.global_batch, **where)
