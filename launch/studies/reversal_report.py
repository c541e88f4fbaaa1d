"""The reversal study as a page, a picture and a table."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.studies.couplets import DIRECTIONS
from launch.studies.reversal import CHARACTERS, FAMILIES, StudyRun
from launch.studies.scores import Score, together, write_scores
from pretrain.figures import panels
from pretrain.scaling.plots import COLOURS
from runtime.files import write_atomic

_NAMES = {"masked": "masked diffusion", "autoregressive": "autoregressive"}
_LINES = {"forward": "--", "backward": "-"}
_MOST_BASELINE, _LEAST_SHARE = 0.02, 0.9
_PAGE = """# The reversal study

*Written by `lacuna study reversal`; the points behind the picture are in `reversal.csv`.*

A model that has learned `A，B` from left to right does not know what comes before B: it was trained on p(B | A) only.
A masked-diffusion model is trained to fill any gap, so on p(A | B) as well (LLaDA,
[2502.09992](https://arxiv.org/abs/2502.09992), section 3.3).

![Exact answers along the training](reversal.png)

{table}
{aim}
Thin lines are seeds, bold ones their mean. The shade, and the interval of the table, is Wilson's for all answers
together; it takes the answers of different seeds to one question as independent.
{missing}
## How it was done

- **Couplets.** {couplets} couplets of {characters} characters a line from the Tang poems of Debian's package
  `fortunes-zh`. Couplets with a line that stands in another one too are left out: each question has one right answer.
- **Training data.** A statement `A，B` of every couplet. Of {seen} couplets, chosen by a keyed hash, also both
  questions with their answers: `A→B` (which line comes next) and `B←A` (which came before). The other {unseen} couplets
  were never seen as a question in any direction, and these are asked. The seen ones show what the form of the question
  costs.
- **Samples.** A document a sample, a token a character (SentencePiece `char`), EOS at the end.
- **Model.** The same for both: {layers} layers, width {width}, {parameters:,} parameters. What differs: objective and
  attention mask.
- **Training.** Batch {batch}, learning rate {rate:g}, AdamW, {flops:.3g} computed FLOPs a run: {masked_steps:,} steps
  of the masked model, or {causal_steps:,} of the baseline, whose head works on every position.
- **Answers.** Exact match of the whole answer and of the EOS after it. The masked model unmasks one token a pass by low
  confidence, greedily; like every masked sampler it is told how many tokens to fill. The baseline decodes greedily from
  left to right.

These are small models that learn one book by heart. What carries over to large ones is the direction, not the figures.

```sh
make study-reversal          # killed, the same command continues
```
"""


def write_report(scores: Sequence[Score], runs: Sequence[StudyRun], out: Path) -> list[Path]:
    """Write `reversal.csv`, `reversal.png` and `reversal.md` into `out`, of the points that have been asked so far."""
    out.mkdir(parents=True, exist_ok=True)
    page, picture, table = (out / f"reversal.{ending}" for ending in ("md", "png", "csv"))
    write_scores(table, scores)
    _plot(scores, picture)
    write_atomic(page, _page(scores, runs))
    return [page, picture, table]


def _of(scores: Sequence[Score], family: str, direction: str, couplets: str = "unseen") -> dict[int, list[Score]]:
    """Scores of all seeds by step."""
    found: dict[int, list[Score]] = {}
    for score in scores:
        if (score.family, score.direction, score.couplets) == (family, direction, couplets):
            found.setdefault(score.step, []).append(score)
    return dict(sorted(found.items()))


def _plot(scores: Sequence[Score], out: Path) -> None:
    """Share of exact answers against FLOPs: each seed thin, their mean bold, the interval over questions shaded."""
    with panels(out, 1, 1, (7.6, 4.3)) as (axes,):
        for family in FAMILIES:
            for direction in DIRECTIONS:
                _draw(axes, scores, family, direction)
        axes.set_ylim(-0.03, 1.03)
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["0 %", "25 %", "50 %", "75 %", "100 %"])
        axes.set_xlabel("training FLOPs (computed)")
        axes.set_ylabel("exact answers")
        axes.set_title(
            "Which line comes next, which came before? Couplets never seen as questions", loc="left", fontsize=11
        )
        axes.legend(fontsize=9, loc="center left", bbox_to_anchor=(1.0, 0.5))


def _draw(axes: Any, scores: Sequence[Score], family: str, direction: str) -> None:
    by_step = _of(scores, family, direction)
    if not by_step:
        return
    colour, style = COLOURS[family], _LINES[direction]
    for seed in sorted({score.seed for group in by_step.values() for score in group}):
        mine = [score for group in by_step.values() for score in group if score.seed == seed]
        axes.plot([s.flops for s in mine], [s.share for s in mine], style, color=colour, alpha=0.3, linewidth=0.9)
    seeds = max(len(group) for group in by_step.values())
    whole = [group for group in by_step.values() if len(group) == seeds]
    middle = [together(group) for group in whole]
    x = [group[0].flops for group in whole]
    name = f"{_NAMES[family]}, {direction}"
    axes.plot(x, [m["share"] for m in middle], style, color=colour, linewidth=2, marker="o", markersize=3, label=name)
    axes.fill_between(x, [m["low"] for m in middle], [m["high"] for m in middle], color=colour, alpha=0.15, linewidth=0)


def _page(scores: Sequence[Score], runs: Sequence[StudyRun]) -> str:
    masked, causal = (next(run for run in runs if run.family == family) for family in FAMILIES)
    open_runs = [run.name for run in runs if run.seed not in _finished(scores, run.family, _last(runs, run.family))]
    counts = {score.couplets: score.asked for score in scores}
    train = masked.config.train
    return _PAGE.format(
        table="\n".join(_table(scores, runs)),
        aim=f"\n{said}\n" if (said := "" if open_runs else aim(scores)) else "",
        missing=f"\n**Not finished:** {', '.join(open_runs)}.\n" if open_runs else "",
        couplets=sum(counts.values()),
        seen=counts.get("seen", 0),
        unseen=counts.get("unseen", 0),
        characters=CHARACTERS,
        layers=masked.config.model.layers,
        width=masked.config.model.width,
        parameters=masked.config.model.parameters().total,
        batch=train.global_batch,
        rate=masked.config.optimizer.lr,
        flops=masked.flops_per_step * train.steps,
        masked_steps=train.steps,
        causal_steps=causal.config.train.steps,
    )


def aim(scores: Sequence[Score]) -> str:
    """Whether the study's aim was met at the end, in the mean and by every seed: a paragraph, empty before the end.

    The baseline answers at most `_MOST_BASELINE` backward, masked diffusion at least `_LEAST_SHARE` of its own forward
    score.
    """
    ends = {family: max((s.step for s in scores if s.family == family), default=0) for family in FAMILIES}
    last = {(f, d): {s.seed: s for s in _of(scores, f, d).get(ends[f], ())} for f in FAMILIES for d in DIRECTIONS}
    forward, backward = ({seed: s.hits for seed, s in last["masked", d].items()} for d in DIRECTIONS)
    baseline = [score.share for score in last["autoregressive", "backward"].values()]
    if not baseline or forward.keys() != backward.keys() or not all(forward.values()):
        return ""
    below = [seed for seed in forward if backward[seed] < _LEAST_SHARE * forward[seed]]
    missed = [f"seed {seed} with {backward[seed] / forward[seed]:.1%}" for seed in below]
    backwards, forwards = sum(backward.values()), sum(forward.values())
    met = backwards >= _LEAST_SHARE * forwards and max(baseline) <= _MOST_BASELINE
    each = f"not by {' and '.join(missed)}" if missed else "by every seed"
    return (
        f"The aim, a baseline with at most {_MOST_BASELINE:.0%} backward and masked diffusion with at least "
        f"{_LEAST_SHARE:.0%} of its own\nforward score, is {'met' if met else 'missed'} in the mean "
        f"({backwards / forwards:.1%}; the baseline {max(baseline):.1%} at most); {each}."
    )


def _last(runs: Sequence[StudyRun], family: str) -> int:
    return next(run for run in runs if run.family == family).config.train.steps


def _finished(scores: Sequence[Score], family: str, last: int) -> set[int]:
    """Seeds that have answered after the last step."""
    return {score.seed for score in scores if (score.family, score.step) == (family, last)}


def _table(scores: Sequence[Score], runs: Sequence[StudyRun]) -> list[str]:
    """By family, direction and half: seeds at the end, or while none is there, at the point that most have reached."""
    heading = ("family", "direction", "couplets", "exact answers", "seeds", "from – to", "95 % interval", "steps")
    lines = ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading)]
    for couplets in ("unseen", "seen"):
        for family in FAMILIES:
            for direction in DIRECTIONS:
                by_step = _of(scores, family, direction, couplets)
                if not by_step:
                    continue
                step, last = max(by_step, key=lambda step: (len(by_step[step]), step)), _last(runs, family)
                step = last if last in by_step else step
                m = together(by_step[step])
                cells = (
                    _NAMES[family], direction, couplets, f"{m['share']:.1%}", m["seeds"],
                    f"{m['least']:.1%} – {m['most']:.1%}", f"{m['low']:.1%} – {m['high']:.1%}", f"{step:,}",
                )  # fmt: skip
                lines.append("| " + " | ".join(map(str, cells)) + " |")
    return lines
