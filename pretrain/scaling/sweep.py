"""A sweep: what its file says, and the training runs that follow from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from pretrain.config import RunConfig
from pretrain.flop_conventions import CONVENTIONS, Training
from pretrain.flops import bound_flops, forward_flops_per_token, likelihood_flops
from pretrain.planning.cost import training_of
from pretrain.scaling.families import PUBLISHED, shape_of_size
from pretrain.scaling.identity import config_digest
from pretrain.scaling.points import Measured
from pretrain.scaling.rules import DeepSeekRule, Rule
from pretrain.shape import ModelShape
from runtime.errors import UserError
from runtime.settings import Settings

ObjectiveKind = Literal["masked", "autoregressive"]
Convention = Literal["computed", "exact", "6nd", "6nd_total", "eth", "palm"]
_WITHOUT_PADDING = ("6nd", "6nd_total")
_FEWEST_STEPS = 100
_GOOD_EPOCHS = {"masked": 100, "autoregressive": 4}  # arXiv 2507.15857


class Evaluation(Settings):
    """Held-out windows of a point's validation, and noise draws a window of the masked-diffusion bound."""

    windows: int = Field(256, ge=2)
    draws: int = Field(16, ge=1)
    seed: int = Field(0, ge=0)


class SchedulePlan(Settings):
    """Warm-up, decay (shares of a point's tokens) and floor (times the peak) of its learning rate."""

    warmup: float = Field(0.02, ge=0, lt=1)
    decay: float = Field(0.2, ge=0, le=1)
    floor: float = Field(0.1, ge=0, le=1)

    def over(self, tokens: int) -> dict[str, Any]:
        """The keys `optimizer.schedule` of a run of `tokens` tokens."""
        return {"kind": "wsd", "warmup": round(self.warmup * tokens), "decay": self.decay, "floor": self.floor}


class _Sweep(Settings):
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    recipe: str = "demo"
    overrides: list[str] = []  # noqa: RUF012 (pydantic copies defaults)
    data: str
    families: dict[ObjectiveKind, str] = Field(default={"masked": "llada", "autoregressive": "ar"}, min_length=1)
    convention: Convention = "computed"
    rule: Rule = DeepSeekRule()
    schedule: SchedulePlan = SchedulePlan()
    micro_batch: int = Field(16, gt=0)
    evaluation: Evaluation = Evaluation()
    expected_rate: float | None = Field(None, gt=0)
    """FLOP/s (computed) that one process is expected to reach, for the estimate of hours."""

    @model_validator(mode="after")
    def _known_families(self) -> Self:
        for kind, family in self.families.items():
            if family not in PUBLISHED:
                raise ValueError(f"families.{kind}: {family!r} is none of {', '.join(PUBLISHED)}")
        return self


class IsoFlopSweep(_Sweep):
    """For each budget (training FLOPs by `convention`), the sizes of its row in `sizes`, for each family."""

    kind: Literal["isoflop"] = "isoflop"
    budgets: list[float] = Field(min_length=1)
    sizes: list[list[float | str]]

    @model_validator(mode="after")
    def _rows(self) -> Self:
        if len(self.sizes) != len(self.budgets):
            raise ValueError(
                f"sizes: {len(self.sizes)} rows for {len(self.budgets)} budgets: give a list of sizes for each budget"
            )
        if any(budget <= 0 for budget in self.budgets) or len(set(self.budgets)) < len(self.budgets):
            raise ValueError("budgets: give positive numbers of FLOPs, none twice")
        if not all(self.sizes):
            raise ValueError("sizes: a budget has no size: give at least three for a parabola")
        return self


class RepeatSweep(_Sweep):
    """Each of `sizes` on each number of `unique_tokens` for each number of `epochs`, for each family."""

    kind: Literal["repeats"]
    sizes: list[float | str] = Field(min_length=1)
    unique_tokens: list[int] = Field(min_length=1)
    epochs: list[int] = Field(min_length=1)

    @model_validator(mode="after")
    def _positive(self) -> Self:
        if min([*self.unique_tokens, *self.epochs]) < 1:
            raise ValueError("unique_tokens and epochs: give numbers from 1 up")
        return self


Sweep = IsoFlopSweep | RepeatSweep


def parse_sweep(values: Any, where: str) -> Sweep:
    """A sweep from the keys of its file. Raises UserError naming the key, `where` it stands, and the mend."""
    keys = {"kind": "isoflop", **values} if isinstance(values, dict) else values
    kind = keys.get("kind") if isinstance(keys, dict) else None
    if kind == "isoflop":
        return IsoFlopSweep.parse(keys, where)
    if kind == "repeats":
        return RepeatSweep.parse(keys, where)
    raise UserError(f"{where}: kind: {kind!r} is neither isoflop nor repeats")


@dataclass(frozen=True)
class Point:
    """A run of a sweep. `tokens` are those trained on: short masked samples count with their length, not the window.

    `config_digest` is that of its configuration and of its validation's.
    `flops` by the sweep's convention; `computed_flops` what its steps compute; `evaluation_flops` its validation.
    """

    config: RunConfig
    config_digest: str
    budget: float | None
    tokens: float
    flops: float
    computed_flops: float
    evaluation_flops: float
    epochs: float
    warnings: list[str]

    @property
    def name(self) -> str:
        """Name of the run and of its directory."""
        return self.config.name

    @property
    def parameters(self) -> int:
        """N, weights of the layers' matrices."""
        return self.config.model.parameters().non_embedding_matrices

    def measured(
        self, loss: float, loss_se: float | None, bits: float | None, bits_se: float | None, data_digest: str
    ) -> Measured:
        """The point as a line of the table."""
        unique = self.config.data.unique_tokens
        return Measured(
            family=self.config.objective.kind,
            parameters=float(self.parameters),
            tokens=self.tokens,
            flops=self.flops,
            loss=loss,
            loss_se=loss_se,
            budget=self.budget,
            unique_tokens=self.tokens / self.epochs if self.epochs > 1 or unique else None,
            bits_per_byte=bits,
            bits_per_byte_se=bits_se,
            name=self.name,
            config_digest=self.config_digest,
            data_digest=data_digest,
        )


def sweep_points(sweep: Sweep, base: RunConfig, data_tokens: int) -> list[Point]:
    """All runs of the sweep, cheap ones first. `data_tokens`: tokens of the training split.

    Raises UserError for sizes or budgets that make no run.
    """
    points = [
        _point(sweep, base, data_tokens, kind, size, budget, unique, epochs)
        for kind in sweep.families
        for size, budget, unique, epochs in _cells(sweep)
    ]
    names = [point.name for point in points]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"sizes: {name} comes twice: two sizes mean the same shape, leave one out")
    return sorted(points, key=lambda point: point.computed_flops)


def _cells(sweep: Sweep) -> list[tuple[float | str, float | None, int | None, int]]:
    if isinstance(sweep, IsoFlopSweep):
        rows = zip(sweep.budgets, sweep.sizes, strict=True)
        return [(size, budget, None, 1) for budget, sizes in rows for size in sizes]
    return [(n, None, unique, epochs) for n in sweep.sizes for unique in sweep.unique_tokens for epochs in sweep.epochs]


def _point(
    sweep: Sweep, base: RunConfig, data_tokens: int, kind: ObjectiveKind, size: float | str,
    budget: float | None, unique: int | None, epochs: int,
) -> Point:  # fmt: skip
    same = base.objective.kind == kind
    objective = base.objective.model_dump() if same else {"kind": kind}
    shape = shape_of_size(sweep.families[kind], size, base.model.vocabulary)
    kept = {key: getattr(base.model, key) for key in ("rope_theta", "norm_epsilon")}
    model = {**shape.model_dump(), **kept, "init_std": initial_std(shape)}
    draft = RunConfig.parse({**base.model_dump(), "objective": objective, "model": model}, sweep.name)
    work, share, length = training_of(draft), trained_share(draft), draft.train.sequence_length
    counted = share if sweep.convention in _WITHOUT_PADDING else 1.0
    per_position = CONVENTIONS[sweep.convention].per_token(work) * counted
    if budget is not None:
        positions = budget / per_position
    else:
        assert unique is not None
        positions = float(unique // length * length * epochs)
    layers = forward_flops_per_token(shape, length, work.causal, 0.0).times(3.0).total
    chosen = sweep.rule.at(shape.parameters().non_embedding_matrices, positions, layers * positions)
    micro, batch = _batches(max(1, round(chosen.batch_tokens / length)), sweep.micro_batch)
    steps = round(positions / (batch * length))
    if steps < 1:
        where = f"budget {budget:.3g}" if budget is not None else f"unique_tokens {unique}"
        raise UserError(f"{where}: not one step of {batch * length} tokens for size {size}: use more or a smaller size")
    positions = float(steps * batch * length)
    seen = positions / (unique // length * length if unique else data_tokens)
    name = _name(kind, work, budget, unique, epochs)
    config = _config(sweep, draft, name, (micro, batch), steps, chosen.lr, unique)
    return Point(
        config=config,
        config_digest=config_digest(config, sweep.evaluation),
        budget=budget,
        tokens=positions * share,
        flops=per_position * positions,
        computed_flops=CONVENTIONS["computed"].per_token(work) * positions,
        evaluation_flops=_evaluation_flops(sweep.evaluation, work),
        epochs=max(1.0, seen),
        warnings=_warnings(kind, steps, seen, unique is not None),
    )


def _batches(wanted: int, most: int) -> tuple[int, int]:
    """Micro-batch of at most `most` sequences, and the global batch nearest to `wanted` that is a few whole ones."""
    count = -(-wanted // most)
    micro = round(wanted / count)
    return micro, micro * count


def initial_std(shape: ModelShape) -> float:
    """1/√width: the usual 0.02 suits widths of thousands."""
    return round(shape.width**-0.5, 5)


def trained_share(config: RunConfig) -> float:
    """Mean logical length of a sample over the window: 1 − r + r·(s + 1)/2s if a share r has a length U{1…s}.

    The correction of SMDM's code (ML-GSAI/SMDM).
    """
    objective, length = config.objective, config.train.sequence_length
    short = objective.random_length if objective.kind == "masked" else 0.0
    return 1 - short + short * (length + 1) / (2 * length)


def _name(kind: str, work: Training, budget: float | None, unique: int | None, epochs: int) -> str:
    size = f"{work.shape.parameters().non_embedding_matrices}"
    where = f"{budget:.2e}".replace("+", "") if budget is not None else f"u{unique}-e{epochs}"
    return f"{kind}-{where}-n{size}"


def _config(
    sweep: Sweep, draft: RunConfig, name: str, batches: tuple[int, int], steps: int, lr: float, unique: int | None
) -> RunConfig:
    micro, batch = batches
    values = draft.model_dump()
    total = steps * batch * draft.train.sequence_length
    values["name"] = name
    values["optimizer"] |= {
        "lr": float(f"{lr:.4g}"),
        "schedule": sweep.schedule.over(total),
    }
    values["train"] |= {
        "steps": steps,
        "global_batch": batch,
        "micro_batch": micro,
        "log_every": max(1, steps // 200),
    }
    values["checkpoint"] |= {"every": max(50, steps // 4), "keep": 1}
    values["data"] = {"path": sweep.data, "mixture": {}, "unique_tokens": unique}
    values["tracking"] |= {"enabled": False}  # the sweep itself shows its points
    return RunConfig.parse(values, f"{sweep.name}: {name}")


def _warnings(kind: str, steps: int, epochs: float, meant: bool) -> list[str]:
    found = []
    if steps < _FEWEST_STEPS:
        found.append(f"only {steps} steps: lower rule.batch_factor or raise the budget")
    if epochs > 1.01 and not meant:
        much = f", more than the {_GOOD_EPOCHS[kind]} that are as good as fresh" if epochs > _GOOD_EPOCHS[kind] else ""
        found.append(f"repeats its data {epochs:.3g} times{much}: build a larger dataset")
    return found


def _evaluation_flops(evaluation: Evaluation, work: Training) -> float:
    length = work.sequence_length
    one = likelihood_flops(work.shape, length) if work.causal else bound_flops(work.shape, length, evaluation.draws)
    return one.total * evaluation.windows
