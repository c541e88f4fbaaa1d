"""The training loop: what ranks agree on, what it reports, when it saves, and how it ends."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from parallel.engines.base import Engine
from parallel.mesh import Mesh
from pretrain.agreement import Agreement, agree
from pretrain.build import build_engine
from pretrain.config import RunConfig
from pretrain.feed import StepBatch
from pretrain.flops import hardware_flops_per_token, training_flops_per_token
from pretrain.guards import Guard
from pretrain.loop import Hooks, data_wait, learning_rate, train
from runtime.errors import LacunaError
from runtime.signals import StopRequest
from tests.support.feeds import whole_feed
from tests.support.reference_model import reference_losses
from tests.support.simulated import single_process
from tests.support.threads import run_ranks
from tests.support.tiny import tiny_config

WORD = 1 << 64
LOCAL = Mesh.local(torch.device("cpu"))
words = st.one_of(st.integers(0, WORD - 1), st.sampled_from([0, 1, 2**63 - 1, 2**63, WORD - 1]))


@settings(deadline=None)
@given(st.tuples(words, words), st.integers(0, 2**40))
def test_digest_is_both_words_in_hexadecimal(digest: tuple[int, int], tokens: int) -> None:
    agreed = agree(LOCAL, StepBatch((), tokens, digest), stop=False)
    assert agreed.digest == f"{digest[1]:016x}{digest[0]:016x}"
    assert len(agreed.digest) == 32
    assert (agreed.tokens, agreed.stop) == (tokens, False)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.tuples(words, words), min_size=2, max_size=3))
def test_digests_of_ranks_are_added_modulo_two_to_the_64(digests: list[tuple[int, int]]) -> None:
    results = run_ranks(len(digests), lambda mesh: agree(mesh, StepBatch((), 5, digests[mesh.rank]), False))
    low, high = (sum(column) % WORD for column in zip(*digests, strict=True))
    assert all(agreed.digest == f"{high:016x}{low:016x}" for agreed in results)
    assert all(agreed.tokens == 5 * len(digests) for agreed in results)


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_ranks_agree_on_the_digest_of_the_global_batch(ranks: int) -> None:
    config = tiny_config()
    (alone,) = run_ranks(1, lambda mesh: agree(mesh, whole_feed(config).step(3), False))
    results = run_ranks(
        ranks, lambda mesh: agree(mesh, whole_feed(config, data_rank=mesh.rank, data_size=ranks).step(3), False)
    )
    assert results == [alone] * ranks


def test_all_know_the_longest_wait_for_a_batch_and_each_ranks_work() -> None:
    waits, share = [0.25, 2.0, 0.5], StepBatch((), 1, (0, 0))
    results = run_ranks(3, lambda mesh: agree(mesh, share, False, (0, 0), 0.125 * mesh.rank, waits[mesh.rank]))
    assert {agreed.waited for agreed in results} == {2.0}
    assert {agreed.worked for agreed in results} == {(0.0, 0.125, 0.25)}


@pytest.mark.parametrize(
    ("own", "longest", "held", "lost"),
    [
        (0.5, 0.5, 0.1, 0.5),  # nobody waits longer: held up by something else
        (0.5, 2.0, 1.4, 1.9),  # a peer's data, which came when this rank had already waited a little
        (0.0, 2.0, 9.0, 2.0),  # held up by more than data
        (0.0, 2.0, 0.0, 0.0),  # this rank was late itself
    ],
)
def test_waits_of_peers_for_data_count_as_far_as_they_hold_a_rank_up(
    own: float, longest: float, held: float, lost: float
) -> None:
    assert data_wait(own, longest, held) == pytest.approx(lost)


@pytest.mark.parametrize("place", ["tensor_rank", "pipeline_rank", "context_rank"])
def test_peers_of_a_data_rank_do_not_count_twice(place: str) -> None:
    share = StepBatch((), 7, (11, 13))

    def agreed_by_peers(mesh: Any) -> Agreement:
        coordinates: dict[str, Any] = {place: mesh.rank}
        return agree(replace(mesh, **coordinates), share, False)

    results = run_ranks(2, agreed_by_peers)
    assert [agreed.tokens for agreed in results] == [7, 7]
    assert {agreed.digest for agreed in results} == {f"{13:016x}{11:016x}"}


@pytest.mark.parametrize("asking", range(3))
def test_a_stop_on_any_rank_stops_all(asking: int) -> None:
    def ask(mesh: Any) -> bool:
        peer = replace(mesh, tensor_rank=mesh.rank)  # also one that does not speak for its data rank
        return agree(peer, StepBatch((), 1, (0, 0)), stop=mesh.rank == asking).stop

    assert run_ranks(3, ask) == [True] * 3


@dataclass
class Recorder:
    """What the loop told the outside. It is its own `Saves`, whose saves are done at once."""

    lines: dict[int, dict[str, Any]] = field(default_factory=dict)
    steps: list[int] = field(default_factory=list)
    saved: int = 0
    stalled_seconds: float = 0.0

    def hooks(self) -> Hooks:
        return Hooks(metrics=self.lines.__setitem__, saves=self)  # type: ignore[arg-type]

    def begin(self, step: int, guard: Guard) -> None:
        self.steps.append(step)
        self.saved = step

    def votes(self) -> tuple[int, int]:
        return 0, 0

    def advance(self, votes: tuple[int, int]) -> None:
        assert votes == (0, 0)

    def make_way(self, step: int) -> None:
        """There is never one under way."""

    def finish(self) -> None:
        """Likewise."""

    def conclude(self, step: int, guard: Guard) -> None:
        if step > self.saved:
            self.begin(step, guard)

    def metrics(self) -> dict[str, float]:
        return {}


def run_loop(config: RunConfig, engine: Engine, span: range, stop: StopRequest | None = None, **place: Any) -> Any:
    """(what `train` returned, what it told, the guard)."""
    recorder, guard = Recorder(saved=span.start), Guard(config.guard)
    stop = stop or StopRequest()
    returned = train(config, engine, whole_feed(config, **place), span, guard, recorder.hooks(), stop)
    return returned, recorder, guard


def assert_speeds_agree(config: RunConfig, line: dict[str, Any]) -> None:
    """MFU and HFU are FLOPs over seconds over the peak, recomputed from the line and the configuration alone."""
    train, objective = config.train, config.objective
    work = (config.model, train.sequence_length, objective.causal, objective.head_rows)
    tokens = train.global_batch * train.sequence_length
    assert line["perf/tokens_per_second"] == pytest.approx(tokens / line["perf/step_seconds"], rel=1e-12)
    for name, flops in (("mfu", training_flops_per_token(*work)), ("hfu", hardware_flops_per_token(*work))):
        rate = flops.total * tokens / line["perf/step_seconds"]
        assert line[f"perf/{name}"] == pytest.approx(rate / line["perf/peak_flops_per_second"], rel=1e-12)
    assert line["perf/mfu"] == pytest.approx(
        line["perf/flops_per_second"] / line["perf/peak_flops_per_second"], rel=1e-12
    )
    assert 0 < line["perf/mfu"] < line["perf/hfu"]


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with single_process(tiny_config()) as alone:
        yield alone


@pytest.mark.filterwarnings("ignore")  # the engine gives many
class TestRealEngine:
    """With megatron in this process."""

    @pytest.mark.parametrize("objective", ["masked", "autoregressive"])
    def test_metrics_are_those_of_the_reference(self, mesh: Mesh, objective: str) -> None:
        config = tiny_config(objective, train__steps=4, optimizer__lr=0.003)
        returned, recorder, _ = run_loop(config, build_engine(config, mesh), range(4))
        reference = reference_losses(config, whole_feed(config), 4)
        assert returned == (4, False)
        assert list(recorder.lines) == [1, 2, 3, 4]
        for step, line in recorder.lines.items():
            assert line["train/loss"] == pytest.approx(reference.losses[step - 1], rel=1e-6)
            assert line["optim/grad_norm"] == pytest.approx(reference.grad_norms[step - 1], rel=1e-5)
            assert line["optim/lr"] == learning_rate(config, step - 1)
            assert line["tokens"] == step * 256
            low, high = whole_feed(config).step(step - 1).digest
            assert line["data/batch_digest"] == f"{high:016x}{low:016x}"
            assert line["train/refused_steps"] == 0
            assert line["perf/tokens_per_second"] > 0
            assert_speeds_agree(config, line)
            levels = [key for key in line if key.startswith("train/loss_at_level/")]
            assert bool(levels) == (objective == "masked")
            assert all(isinstance(value, int | float | str) for value in line.values())

    def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_step(self, mesh: Mesh) -> None:
        """Weights and moments stay what they were; the message says where to continue from."""
        config = tiny_config(guard__patience=2)
        engine = build_engine(config, mesh)
        for fragment in engine.fragments():
            if fragment.kind == "weight":
                fragment.values[0] = torch.nan
        engine.finish_load(0)
        before = [fragment.values.clone() for fragment in engine.fragments()]
        recorder = Recorder()
        with pytest.raises(
            LacunaError, match=r"^step 2: 2 steps in a row were refused .*nan.*no checkpoint yet.*lower optimizer\.lr"
        ):
            train(config, engine, whole_feed(config), range(20), Guard(config.guard), recorder.hooks(), StopRequest())
        assert recorder.steps == []
        assert list(recorder.lines) == [1, 2]
        assert [line["train/refused_steps"] for line in recorder.lines.values()] == [1, 2]
        for fragment, values in zip(engine.fragments(), before, strict=True):
            assert torch.equal(fragment.values.isnan(), values.isnan())
            assert torch.equal(fragment.values.nan_to_num(), values.nan_to_num())

    def test_one_bad_step_is_passed_over_and_the_run_goes_on(self, mesh: Mesh) -> None:
        """A batch with an infinite weight: its step is refused, the next one is as if it had not been."""
        config = tiny_config(train__steps=4, checkpoint__every=2)
        feed = whole_feed(config)

        class OneBadBatch:
            def step(self, step: int) -> StepBatch:
                share = feed.step(step)
                if step != 1:
                    return share
                first, *others = share.micro_batches
                bad = replace(first, weights_R=torch.full_like(first.weights_R, torch.inf))
                return replace(share, micro_batches=(bad, *others))

        engine, recorder, guard = build_engine(config, mesh), Recorder(), Guard(config.guard)
        train(config, engine, OneBadBatch(), range(4), guard, recorder.hooks(), StopRequest())  # type: ignore[arg-type]
        assert [line["train/refused_steps"] for line in recorder.lines.values()] == [0, 1, 1, 1]
        assert guard.refused == 1
        assert recorder.steps == [3, 4]  # the save of step 2, which was refused, is made after the next accepted one
        assert all(bool(fragment.values.isfinite().all()) for fragment in engine.fragments())

    @pytest.mark.parametrize(
        ("every", "span", "saved"),
        [
            (2, range(5), [2, 4, 5]),
            (2, range(4), [2, 4]),
            (2, range(3, 7), [4, 6, 7]),
            (1, range(3), [1, 2, 3]),
            (100, range(3), [3]),
            (2, range(4, 4), []),
        ],
    )
    def test_saves_every_so_many_steps_and_at_the_end(
        self, mesh: Mesh, every: int, span: range, saved: list[int]
    ) -> None:
        config = tiny_config(checkpoint__every=every)
        returned, recorder, _ = run_loop(config, build_engine(config, mesh), span)
        assert recorder.steps == saved
        assert returned == (span.stop, False)

    def test_logs_every_so_many_steps_and_the_last(self, mesh: Mesh) -> None:
        config = tiny_config(train__log_every=3)
        _, recorder, _ = run_loop(config, build_engine(config, mesh), range(7))
        assert list(recorder.lines) == [3, 6, 7]

    def test_a_stop_request_saves_and_says_so(self, mesh: Mesh) -> None:
        config = tiny_config()
        stop, recorder = StopRequest(), Recorder()
        hooks = recorder.hooks()

        def report(step: int, values: dict[str, Any]) -> None:
            hooks.metrics(step, values)
            if step == 3:
                stop._note(15, None)  # as the signal handler does

        engine = build_engine(config, mesh)
        returned = train(
            config, engine, whole_feed(config), range(20), Guard(config.guard), replace(hooks, metrics=report), stop
        )
        assert returned == (3, True)
        assert recorder.steps == [3]

    def test_a_run_in_two_parts_is_the_run_in_one(self, mesh: Mesh) -> None:
        config = tiny_config()
        _, whole, _ = run_loop(config, build_engine(config, mesh), range(4))
        engine = build_engine(config, mesh)
        parts = [run_loop(config, engine, span)[1] for span in (range(2), range(2, 4))]
        for key in ("train/loss", "optim/grad_norm", "optim/lr", "data/batch_digest", "tokens"):
            found = {step: line[key] for part in parts for step, line in part.lines.items()}
            assert found == {step: line[key] for step, line in whole.lines.items()}

    def test_an_error_of_the_data_reaches_the_caller(self, mesh: Mesh) -> None:
        config = tiny_config()

        class Broken:
            def step(self, step: int) -> StepBatch:
                raise LacunaError(f"shard of step {step} is damaged")

        with pytest.raises(LacunaError, match="shard of step 2 is damaged"):
            train(
                config,
                build_engine(config, mesh),
                Broken(),  # type: ignore[arg-type]
                range(2, 5),
                Guard(config.guard),
                Recorder().hooks(),
                StopRequest(),
            )
