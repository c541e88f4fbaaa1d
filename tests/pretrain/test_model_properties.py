"""What holds for the model whatever its weights are."""

import inspect
import itertools
from dataclasses import replace
from typing import Any

import pytest
import torch

from parallel.stages import Stage
from pretrain.batch import MicroBatch
from pretrain.config import RunConfig
from pretrain.initialise import initialise
from pretrain.model import Transformer
from tests.support.feeds import whole_feed
from tests.support.models import CPU, fill_model, gradients_of, largest_error, local_model
from tests.support.reference_model import starting_weights
from tests.support.tiny import MASK, PAD, VOCABULARY, tiny_config

SEQUENCE = 16


def configured(objective: str = "masked", **changes: Any) -> RunConfig:
    return tiny_config(objective, **{"model__init_std": 0.15, "train__sequence_length": SEQUENCE} | changes)


def batch_of(config: RunConfig, step: int = 0) -> MicroBatch:
    return whole_feed(config, micro_batch=8).step(step).micro_batches[0]


def some_ids(rows: int = 2, length: int = SEQUENCE) -> torch.Tensor:
    return torch.randint(128, (rows, length), generator=torch.Generator().manual_seed(9))


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def test_there_is_no_time_input() -> None:
    """Equal ids give equal logits and losses to the bit, whatever noise level the batch says they have."""
    assert list(inspect.signature(Transformer.logits).parameters) == ["self", "ids_BS"]
    config = configured()
    model, batch = local_model(config), batch_of(config)
    loss_sum, stats = model(batch)
    for levels_R in (torch.zeros_like(batch.levels_R), 9 - batch.levels_R):
        other_sum, other_stats = model(replace(batch, levels_R=levels_R))
        assert torch.equal(other_sum, loss_sum)
        assert other_stats[1:11].sum().item() == pytest.approx(stats[1:11].sum().item(), rel=1e-12)
        assert not torch.equal(other_stats, stats)  # only the statistics are sorted by level


def seen(model: Transformer, ids_BS: torch.Tensor) -> torch.Tensor:
    """[S, S]: whether the logits of the row's position change with the token of the column's."""
    with torch.no_grad():
        before = model.logits(ids_BS)
        columns = []
        for position in range(SEQUENCE):
            other = ids_BS.clone()
            other[:, position] = (other[:, position] + 7) % 128
            columns.append((model.logits(other) != before).any(-1).all(0))
            untouched = (model.logits(other) == before).all(-1).all(0)
            assert (columns[-1] | untouched).all()
    return torch.stack(columns, dim=1)


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_a_masked_model_sees_every_token_from_every_position(kv_heads: int) -> None:
    model = local_model(configured(model__kv_heads=kv_heads))
    assert seen(model, some_ids()).all()


@pytest.mark.parametrize("kv_heads", [4, 2])
def test_the_baseline_sees_no_later_token(kv_heads: int) -> None:
    """Not even in the last bit."""
    model = local_model(configured("autoregressive", model__kv_heads=kv_heads))
    assert torch.equal(seen(model, some_ids()), torch.ones(SEQUENCE, SEQUENCE, dtype=torch.bool).tril())


def test_sequences_of_a_batch_do_not_meet() -> None:
    model, ids_BS = local_model(configured()), some_ids(3)
    with torch.no_grad():
        together = model.logits(ids_BS)
        alone = torch.cat([model.logits(ids_BS[b : b + 1]) for b in range(3)])
    assert relative(alone, together) < 1e-6


@pytest.mark.parametrize("kv_heads", [1, 2])
@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_grouped_queries_are_multi_head_with_repeated_keys(objective: str, kv_heads: int) -> None:
    grouped_config, full_config = configured(objective, model__kv_heads=kv_heads), configured(objective)
    weights = starting_weights(grouped_config, torch.float32)
    repeated = dict(weights)
    for name, weight in weights.items():
        if name.endswith(("attention.key", "attention.value")):
            heads = weight.unflatten(0, (kv_heads, -1)).repeat_interleave(4 // kv_heads, dim=0)
            repeated[name] = heads.flatten(0, 1)
    grouped, full = local_model(grouped_config), local_model(full_config)
    fill_model(grouped, weights)
    fill_model(full, repeated)
    with torch.no_grad():
        assert relative(grouped.logits(some_ids()), full.logits(some_ids())) < 1e-6


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_recomputation_changes_no_gradient(objective: str) -> None:
    config = configured(objective)
    batch = batch_of(config)
    expected_sum, expected = gradients_of(local_model(config), batch)
    for recompute in ("selective", "full"):
        found_sum, found = gradients_of(local_model(config, recompute=recompute), batch)
        assert torch.equal(found_sum, expected_sum)
        for name, gradient in expected.items():
            assert torch.equal(found[name], gradient), (recompute, name)


def kept_bytes(model: Transformer, batch: MicroBatch) -> int:
    """Bytes that the backward pass keeps of the forward one, each storage once, weights left out."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss_sum, _ = model(batch)
    assert loss_sum.requires_grad
    return sum(storages.values())


def test_recomputation_keeps_less() -> None:
    config = configured(model__layers=4)
    batch = batch_of(config)
    none, selective, full = (kept_bytes(local_model(config, recompute=r), batch) for r in ("none", "selective", "full"))
    assert full < 0.5 * none
    assert selective < none


def padded_and_truncated(length: int) -> tuple[MicroBatch, MicroBatch]:
    """The same counting rows, once behind padding and once in a sequence that ends."""
    ids_BS = some_ids(3)
    ids_BS[:, ::3] = MASK
    rows = torch.tensor([p * 3 + b for b in range(3) for p in sorted({0, length // 2, length - 1})])
    count = len(rows)
    padded_ids = ids_BS.clone()
    padded_ids[:, length:] = PAD
    generator = torch.Generator().manual_seed(4)
    rest = {
        "rows_R": rows,
        "targets_R": torch.randint(128, (count,), generator=generator),
        "weights_R": torch.rand(count, generator=generator) + 0.5,
        "levels_R": torch.zeros(count, dtype=torch.int64),
    }
    padded = MicroBatch(inputs_BS=padded_ids, lengths_B=torch.full((3,), length), **rest)
    return padded, MicroBatch(inputs_BS=ids_BS[:, :length], lengths_B=None, **rest)


@pytest.mark.parametrize("length", [1, 2, 9, SEQUENCE - 1])
@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_padding_is_the_same_as_a_shorter_sequence(objective: str, length: int) -> None:
    """At the model's own initial deviation; with one key visible, queries and keys have no gradient at all."""
    model = local_model(configured(objective, model__init_std=0.02))
    padded, truncated = padded_and_truncated(length)
    found_sum, found = gradients_of(model, padded)
    expected_sum, expected = gradients_of(model, truncated)
    assert found_sum.item() == pytest.approx(expected_sum.item(), rel=1e-6)
    if length == 1:
        for name in [name for name in expected if name.endswith(("attention.query", "attention.key"))]:
            assert max(float(found.pop(name).abs().max()), float(expected.pop(name).abs().max())) < 1e-6
    assert largest_error(found, expected) < 1e-6


SHAPES: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "grouped": {"model__kv_heads": 1, "model__layers": 3},
    "odd sizes": {"model__width": 60, "model__heads": 6, "model__kv_heads": 3, "model__ffn": 37},
}


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_formula(name: str) -> None:
    config = tiny_config(**SHAPES[name])
    model = local_model(config)
    counts = config.model.parameters()
    assert sum(p.numel() for p in model.parameters()) == counts.total
    assert sum(p.numel() for p in model.parameters() if p.dim() == 1) == counts.norms
    vocabulary = [p.numel() for p in model.parameters() if p.shape[0] == config.model.vocabulary]
    assert (len(vocabulary), sum(vocabulary)) == (2, counts.embedding)
    assert not list(model.buffers())


@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_gradients_flow_to_every_parameter(objective: str) -> None:
    config = configured(objective, model__kv_heads=2)
    batch = batch_of(config)
    _, gradients = gradients_of(local_model(config), batch)
    for name, gradient in gradients.items():
        assert gradient.isfinite().all()
        if name == "embedding":
            lengths = [SEQUENCE] * 8 if batch.lengths_B is None else batch.lengths_B.tolist()
            counting = set((batch.rows_R % 8).tolist())  # a sequence without a mask has no loss
            used = {int(token) for b in counting for token in batch.inputs_BS[b, : lengths[b]]}
            assert set(gradient.any(-1).nonzero().flatten().tolist()) == used
        elif name == "head":
            assert gradient.any(-1).all()  # every token is in the softmax
        else:
            assert (gradient != 0).float().mean() > 0.99, name


def test_a_batch_without_rows_has_no_loss_and_zero_gradients() -> None:
    config = configured()
    empty = {name: torch.zeros(0, dtype=torch.int64) for name in ("rows_R", "targets_R", "levels_R")}
    batch = MicroBatch(inputs_BS=some_ids(), weights_R=torch.zeros(0), lengths_B=None, **empty)
    loss_sum, gradients = gradients_of(local_model(config), batch)
    assert loss_sum.item() == 0.0
    assert not any(gradient.any() for gradient in gradients.values())


@pytest.mark.parametrize("chunk", [1, 7, 40, 10_000])
def test_chunks_of_the_head_change_nothing(chunk: int) -> None:
    config = configured()
    batch = batch_of(config)
    expected_sum, expected = gradients_of(local_model(config), batch)
    found_sum, found = gradients_of(local_model(configured(train__head_chunk=chunk)), batch)
    assert found_sum.item() == pytest.approx(expected_sum.item(), rel=1e-6)
    for name, gradient in expected.items():
        assert relative(found[name], gradient) < 1e-6, name


@pytest.mark.parametrize("cut", [[0, 1, 3], [0, 1, 2, 3]])
@pytest.mark.parametrize("objective", ["masked", "autoregressive"])
def test_stages_one_after_the_other_are_the_whole_model(objective: str, cut: list[int]) -> None:
    config = configured(objective, model__layers=3)
    whole = local_model(config)
    batch = batch_of(config)
    activations: Any = None
    for number, (first, last) in enumerate(itertools.pairwise(cut)):
        stage = Stage(first, last, number == 0, last == 3)
        part = Transformer(config.model, whole._mesh, None, whole.causal, config.train.head_chunk, stage)
        initialise(part, config.model, config.train.seed)
        part.input_SBD = activations
        activations = part(batch)
    loss_sum, stats = activations
    expected_sum, expected_stats = whole(batch)
    assert torch.equal(loss_sum, expected_sum)
    assert torch.equal(stats, expected_stats)


def test_half_precision_is_near_and_gives_float32_losses() -> None:
    config = configured()
    batch = batch_of(config)
    expected, _ = local_model(config)(batch)
    found, _ = local_model(config).bfloat16()(batch)
    assert found.dtype == torch.float32
    assert found.item() == pytest.approx(expected.item(), rel=2e-2)
    assert found.item() != expected.item()


def test_model_stands_where_it_was_put() -> None:
    model = local_model(configured())
    assert {p.device for p in model.parameters()} == {CPU}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert model.shape.vocabulary == VOCABULARY
