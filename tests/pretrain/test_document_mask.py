"""With the document mask, a token's logits are those that it has in its document alone."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pretrain.batch import MicroBatch
from pretrain.config import RunConfig
from pretrain.feed import Feed, collate
from pretrain.model import Transformer, attention_mask
from pretrain.objectives.base import Sample
from pretrain.objectives.documents import PADDING, document_numbers
from runtime.errors import UserError
from tests.support.feeds import samples_of
from tests.support.models import gradients_of, largest_error, local_model
from tests.support.tiny import BOS, PAD, tiny_config

EOS = BOS  # the tiny tokenizer has one id for both
LENGTHS = [5, 1, 9, 7]  # documents of a window of 24, two positions of padding
SEQUENCE = 24


def configured(objective: str = "masked", **changes: Any) -> RunConfig:
    return tiny_config(
        objective,
        **{
            "model__init_std": 0.15,
            "train__sequence_length": SEQUENCE,
            "data__document_mask": True,
            "data__packing": "best_fit",
        }
        | ({"objective__random_length": 0.0} if objective == "masked" else {})
        | changes,
    )


def document(length: int, seed: int) -> np.ndarray:
    return np.append(np.random.default_rng(seed).integers(0, 128, length - 1), EOS)


def window(seeds: list[int]) -> np.ndarray:
    """Documents one after the other, without padding."""
    return np.concatenate([document(length, seed) for length, seed in zip(LENGTHS, seeds, strict=True)])


def logits(model: Transformer, batch: MicroBatch) -> torch.Tensor:
    with torch.no_grad():
        hidden = model._hidden(batch.inputs_BS, batch.lengths_B, batch.documents_BS)
        return model.head.logits(model.norm(hidden)).transpose(0, 1)


def prepared(config: RunConfig, tokens: np.ndarray, index: int = 0) -> Sample:
    return samples_of(config).prepare(tokens, index)


def clear(config: RunConfig, seeds: list[int]) -> Sample:
    """A sample without masks, which would hide what changes."""
    tokens = window(seeds)
    sample = prepared(config, tokens)
    if config.objective.causal:
        return sample
    inputs = sample.inputs.copy()
    inputs[: len(tokens)] = tokens
    return replace(sample, inputs=inputs)


def test_numbers_of_documents() -> None:
    assert document_numbers(np.array([1, EOS, EOS, 3, 4, EOS, 5]), EOS).tolist() == [0, 0, 1, 2, 2, 2, 3]
    assert document_numbers(np.array([], dtype=np.int64), EOS).tolist() == []
    sample = prepared(configured(), window([1, 2, 3, 4]))
    assert sample.documents is not None
    assert sample.documents.tolist() == [0] * 5 + [1] + [2] * 9 + [3] * 7 + [PADDING] * 2
    assert sample.inputs[-2:].tolist() == [PAD] * 2
    assert sample.length == 22


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_logits_do_not_depend_on_other_documents_to_the_bit(objective: str, kv_heads: int) -> None:
    config = configured(objective, model__kv_heads=kv_heads)
    model = local_model(config)
    base = logits(model, collate([clear(config, [1, 2, 3, 4])]))
    for changed in range(4):
        seeds = [1, 2, 3, 4]
        seeds[changed] = 77
        found = logits(model, collate([clear(config, seeds)]))
        first = sum(LENGTHS[:changed])
        same = torch.ones(SEQUENCE, dtype=torch.bool)
        same[first : first + LENGTHS[changed]] = False
        assert torch.equal(found[:, same], base[:, same])
        assert LENGTHS[changed] == 1 or not torch.equal(found[:, ~same], base[:, ~same])


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_no_gradient_flows_between_documents(objective: str) -> None:
    config = configured(objective)
    model = local_model(config)
    batch = collate([prepared(config, window([1, 2, 3, 4]))])
    activations: list[torch.Tensor] = []
    handle = model.embedding.register_forward_hook(lambda _m, _i, out: activations.append(out))
    hidden = model._hidden(batch.inputs_BS, batch.lengths_B, batch.documents_BS)
    handle.remove()
    assert batch.documents_BS is not None
    numbers = batch.documents_BS[0]
    for position in range(SEQUENCE):
        (gradient,) = torch.autograd.grad(hidden[position].pow(3).sum(), activations[0], retain_graph=True)
        reached = gradient[:, 0].any(-1)
        expected = numbers == numbers[position]
        if objective == "autoregressive":
            expected = expected & (torch.arange(SEQUENCE) <= position)
        assert torch.equal(reached, expected)


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_a_packed_document_is_the_document_alone(objective: str) -> None:
    """RoPE is relative: where a document stands in its window changes rounding only."""
    config = configured(objective)
    model = local_model(config)
    packed = prepared(config, window([1, 2, 3, 4]))
    together = logits(model, collate([packed]))
    begin = 0
    for length, seed in zip(LENGTHS, [1, 2, 3, 4], strict=True):
        inputs = packed.inputs[begin : begin + length]
        if objective == "autoregressive":
            assert inputs[0] == BOS
            assert np.array_equal(inputs[1:], document(length, seed)[:-1])
        with torch.no_grad():
            alone = model.logits(torch.from_numpy(inputs)[None])
        found = together[:, begin : begin + length]
        assert float((found - alone).norm() / alone.norm()) < 1e-5
        begin += length


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_loss_and_gradients_are_the_sum_over_documents(objective: str) -> None:
    config = configured(objective, model__init_std=0.02)
    model = local_model(config)
    whole = prepared(config, window([1, 2, 3, 4]), index=3)
    alone, begin = [], 0
    for length in LENGTHS:
        part = slice(begin, begin + length)
        mine = (whole.positions >= begin) & (whole.positions < begin + length)
        inputs = np.full(SEQUENCE, PAD)
        inputs[:length] = whole.inputs[part]
        fields = {name: getattr(whole, name)[mine] for name in ("targets", "weights")}
        alone.append(
            replace(
                whole, inputs=inputs, positions=whole.positions[mine] - begin, length=length, documents=None, **fields
            )
        )
        begin += length
    found_sum, found = gradients_of(model, collate([whole]))
    expected_sum, expected = gradients_of(model, collate(alone))
    assert found_sum.item() == pytest.approx(expected_sum.item(), rel=1e-5)
    assert largest_error(found, expected) < 1e-5


def test_a_random_length_hides_what_it_cuts_off() -> None:
    config = configured(objective__random_length=1.0)
    model = local_model(config)
    index = next(i for i in range(99) if 6 < prepared(config, window([1, 2, 3, 4]), i).length < 14)
    one, other = (prepared(config, window([1, 2, seed, 4]), index) for seed in (3, 77))
    assert one.documents is not None
    assert (one.documents[one.length :] == PADDING).all()
    assert (one.documents[: one.length] >= 0).all()
    first = logits(model, collate([one]))
    assert torch.isfinite(first).all()
    assert torch.equal(first[:, :6], logits(model, collate([other]))[:, :6])


@pytest.mark.parametrize("causal", [False, True])
def test_context_ranks_have_their_rows_of_the_mask(causal: bool) -> None:
    documents_BS = torch.tensor([[0, 0, 1, 1, 1, 2, 2, -1], [0, 0, 0, 0, 0, 0, 1, 1]])
    whole = attention_mask(torch.arange(8), 1, causal, None, documents_BS)
    assert whole is not None
    for rank in range(4):
        part = attention_mask(torch.arange(2) + 2 * rank, 4, causal, None, documents_BS)
        assert part is not None
        assert torch.equal(part, whole[:, :, 2 * rank : 2 * rank + 2])
    for b, q, k in np.ndindex(2, 8, 8):
        visible = bool(documents_BS[b, q] == documents_BS[b, k]) and (not causal or k <= q)
        assert bool(whole[b, 0, q, k]) == visible


def test_context_ranks_get_all_numbers_of_documents() -> None:
    class OneWindow:
        def tokens(self, index: int) -> np.ndarray:
            return window([index, 2, 3, 4])

    config = configured()
    shares = [Feed(OneWindow(), samples_of(config), 8, 2, 0, 1, rank, 2).step(0) for rank in range(2)]
    first, second = (share.micro_batches[0] for share in shares)
    assert first.inputs_BS.shape == (2, SEQUENCE // 2)
    assert first.documents_BS is not None
    assert second.documents_BS is not None
    assert first.documents_BS.shape == (2, SEQUENCE)
    assert torch.equal(first.documents_BS, second.documents_BS)
    assert shares[0].digest == shares[1].digest
    plain = configured(data__document_mask=False)
    assert Feed(OneWindow(), samples_of(plain), 8, 2, 0, 1).step(0).digest != shares[0].digest


def test_the_ring_refuses_it_when_the_configuration_is_read() -> None:
    with pytest.raises(
        UserError, match=r"data\.document_mask=true is not offered with parallel\.context_exchange=ring"
    ):
        configured(parallel__context=2, parallel__context_exchange="ring")
    configured(parallel__context=2)
