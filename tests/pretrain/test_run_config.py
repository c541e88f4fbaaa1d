"""What a run's configuration refuses, with the keys and a mend that mends; the sizes it derives."""

import re
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pretrain.config import RunConfig
from pretrain.objectives.noise import NoiseSource
from runtime.errors import UserError
from tests.support.tiny import tiny_config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"parallel__tensor": 3}, ["parallel.tensor=3", "model.heads=4", "set parallel.tensor=2"]),
        (
            {"parallel__tensor": 4, "model__kv_heads": 2},
            ["parallel.tensor=4", "model.kv_heads=2", "set parallel.tensor=2"],
        ),
        ({"parallel__tensor": 4, "model__ffn": 90}, ["parallel.tensor=4", "model.ffn=90", "set parallel.tensor=2"]),
        (
            {"parallel__tensor": 8, "model__width": 96, "model__heads": 12},  # 6 divides the heads only
            ["parallel.tensor=8", "model.heads=12", "set parallel.tensor=4"],
        ),
        (
            {"parallel__tensor": 3, "parallel__context": 3, "parallel__pipeline": 3, "parallel__sequence": True},
            ["parallel.tensor=3", "model.heads=4", "set parallel.tensor=2 parallel.pipeline=2 parallel.context=2"],
        ),
        (
            {"parallel__tensor": 3, "parallel__sequence": True, "train__sequence_length": 31},
            ["parallel.tensor=3", "set parallel.tensor=1 parallel.sequence=false"],
        ),
        (
            {"parallel__tensor": 2, "parallel__sequence": True, "parallel__context": 2, "train__compile": True},
            [
                "parallel.tensor=2",
                "set parallel.tensor=1 parallel.context=1 parallel.sequence=false or train.compile=false",
            ],
        ),
        ({"parallel__context": 5}, ["parallel.context=5", "train.sequence_length=32", "set parallel.context=4"]),
        (
            {"parallel__tensor": 4, "parallel__sequence": True, "train__sequence_length": 30},
            ["parallel.tensor=4", "train.sequence_length", "=30", "set parallel.tensor=2"],
        ),
        ({"train__micro_batch": 3}, ["train.micro_batch=3", "train.global_batch=8", "set train.micro_batch=2"]),
        ({"parallel__pipeline": 3}, ["parallel.pipeline", "model.layers=2", "set parallel.pipeline=2"]),
        (
            {"parallel__pipeline": 2, "parallel__virtual_pipeline": 2},
            ["parallel.virtual_pipeline", "model.layers=2", "parallel.virtual_pipeline=1"],
        ),
        ({"parallel__zero": 2}, ["parallel.zero=2", "set parallel.zero=1"]),
        ({"train__steps": 0}, ["train.steps"]),
        ({"train__global_batch": -8}, ["train.global_batch"]),
        ({"train__sequence_length": 1}, ["train.sequence_length"]),
        ({"train__precision": "fp16"}, ["train.precision"]),
        ({"train__seed": -1}, ["train.seed"]),
        ({"train__log_every": 0}, ["train.log_every"]),
        ({"optimizer__lr": 0}, ["optimizer.lr"]),
        ({"optimizer__lr": float("inf")}, ["optimizer.lr"]),
        ({"optimizer__lr": float("nan")}, ["optimizer.lr"]),
        ({"optimizer__clip": 0}, ["optimizer.clip"]),
        ({"optimizer__betas": [0.9]}, ["optimizer.betas"]),
        ({"objective__epsilon": 0}, ["epsilon"]),
        ({"objective__epsilon": 1}, ["epsilon"]),
        ({"objective__random_length": 1.1}, ["random_length"]),
        ({"objective__kind": "diffusion"}, ["objective", "diffusion"]),
        ({"checkpoint__keep": 0}, ["checkpoint.keep"]),
        ({"checkpoint__every": 0}, ["checkpoint.every"]),
        ({"guard__patience": 0}, ["guard.patience"]),
        ({"name": ""}, ["name"]),
        ({"train__stesp": 5}, ["train.stesp", "did you mean 'train.steps'"]),
        ({"parralel__tensor": 2}, ["parralel", "did you mean 'parallel'"]),
        ({"model__layers": "two"}, ["model.layers"]),
    ],
    ids=str,
)
def test_what_does_not_fit_is_one_line_with_keys_and_mend(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError) as caught:
        tiny_config(**changes)
    message = str(caught.value)
    assert message.startswith("tiny: ")
    assert "\n" not in message
    for word in words:
        assert word in message


layouts = st.fixed_dictionaries(
    {
        "parallel__tensor": st.sampled_from([1, 2, 3, 4, 6, 8]),
        "parallel__pipeline": st.sampled_from([1, 2, 3, 5]),
        "parallel__virtual_pipeline": st.sampled_from([1, 2]),
        "parallel__context": st.sampled_from([1, 2, 3]),
        "parallel__sequence": st.booleans(),
        "train__micro_batch": st.sampled_from([1, 2, 3, 5]),
        "model__kv_heads": st.sampled_from([1, 2, 4]),
    }
)


@settings(deadline=None)
@given(layouts)
def test_following_the_mends_ends_in_a_valid_configuration(changes: dict[str, Any]) -> None:
    seen: set[str] = set()
    while True:
        try:
            tiny_config(**changes)
        except UserError as error:
            message = str(error)
            assert message not in seen, message  # the mend did not mend it
            seen.add(message)
            assert len(seen) <= 3, seen  # one for switches, one for all axes together, one for the batch
            mend = message.rsplit("set ", 1)[1].rsplit(" or ", 1)[-1]  # the last alternative is the modest one
            assigned = re.findall(r"(\w+)\.(\w+)(?:=(\w+)| above (\d+))", mend)
            assert assigned, message
            for section, key, value, above in assigned:
                number = int(above) + 1 if above else value
                changes = changes | {f"{section}__{key}": int(number) if str(number).isdecimal() else number}
        else:
            return


def valid(changes: dict[str, Any]) -> RunConfig | None:
    try:
        return tiny_config(**changes)
    except UserError:
        return None


@settings(deadline=None)
@given(
    st.integers(1, 64),
    st.integers(1, 8),
    st.sampled_from([{}, {"parallel__tensor": 2}, {"parallel__pipeline": 2}, {"parallel__context": 2}]),
    st.sampled_from([1, 2, 4, 8, 12]),
)
def test_micro_batches_cut_the_global_batch(global_batch: int, micro: int, layout: dict[str, Any], world: int) -> None:
    config = valid({"train__global_batch": global_batch, "train__micro_batch": micro, **layout})
    if config is None or world % config.parallel.model_size:
        return
    data = world // config.parallel.model_size
    try:
        count = config.micro_batches(world)
    except UserError as error:
        assert global_batch % (data * micro)
        message = str(error)
        for word in (f"train.global_batch={global_batch}", f"train.micro_batch={micro}", f"{data} data-parallel ranks"):
            assert word in message
        mended = int(message.rsplit("=", 1)[1])
        again = tiny_config(**{"train__global_batch": mended, "train__micro_batch": micro, **layout})
        assert again.micro_batches(world) >= 1
        assert abs(mended - global_batch) < data * micro or mended == data * micro
    else:
        assert count * data * micro == global_batch


def test_interleaved_schedules_take_whole_rounds_of_micro_batches() -> None:
    layout: dict[str, Any] = {
        "model__layers": 4,
        "parallel__pipeline": 2,
        "parallel__virtual_pipeline": 2,
        "train__micro_batch": 1,
    }
    assert tiny_config(**layout, train__global_batch=6).micro_batches(2) == 6
    with pytest.raises(UserError, match=r"train\.global_batch=5 .*parallel\.pipeline=2 .*set train\.global_batch=4"):
        tiny_config(**layout, train__global_batch=5).micro_batches(2)


def test_derived_sizes() -> None:
    train = tiny_config().train
    assert (train.tokens_per_step, train.total_tokens) == (256, 5120)


def test_objectives_say_what_they_need_of_the_model() -> None:
    masked, baseline = tiny_config().objective, tiny_config("autoregressive").objective
    assert (masked.causal, baseline.causal) == (False, True)
    assert masked.head_rows == pytest.approx(0.5005)
    assert baseline.head_rows == 1.0


def test_a_configuration_survives_json() -> None:
    config = tiny_config(
        parallel__tensor=2, optimizer__schedule={"kind": "segments", "segments": [{"until": 9, "start": 1}]}
    )
    assert RunConfig.parse(config.model_dump(mode="json"), "again") == config


def test_a_configuration_cannot_be_changed() -> None:
    with pytest.raises(ValueError, match="frozen"):
        tiny_config().train.steps = 5  # type: ignore[misc]


def test_every_accepted_seed_draws_noise() -> None:
    config = valid({"train__seed": 2**64})
    if config is not None:
        NoiseSource(config.train.seed, 8, 2, 1e-3, 0.0, True).draw(0)


@pytest.mark.parametrize("betas", [[0.9, 1.0], [-0.1, 0.95], [0.9, 1.5]])
def test_betas_are_rates_below_one(betas: list[float]) -> None:
    with pytest.raises(UserError, match=r"optimizer\.betas"):
        tiny_config(optimizer__betas=betas)
