"""Learning-rate schedules over tokens, so that they mean the same under any batch size and after any resume."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from runtime.settings import Settings


class Segment(Settings):
    """A straight line of the schedule: up to token `until`, from `start` to `end` times the peak learning rate.

    `end` left out means constant. A segment holds up to and excluding `until`; the last one includes it.
    """

    until: int = Field(gt=0)
    start: float = Field(ge=0)
    end: float | None = Field(None, ge=0)


class SegmentSchedule(Settings):
    """Explicit segments, for schedules such as LLaDA's with a step in the middle (2502.09992, appendix B)."""

    kind: Literal["segments"] = "segments"
    segments: tuple[Segment, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        ends = [segment.until for segment in self.segments]
        if ends != sorted(set(ends)):
            raise ValueError("segments must have growing `until` values (tokens)")
        return self

    def factor(self, tokens: float, total_tokens: int) -> float:
        """Multiple of the peak rate after `tokens` tokens; `total_tokens` is not needed here."""
        begin = 0
        for segment in self.segments:
            if tokens < segment.until:
                return _line(segment, begin, tokens)
            begin = segment.until
        last = self.segments[-1]
        return last.start if last.end is None else last.end


class WarmupStableDecay(Settings):
    """Linear warm-up over `warmup` tokens, constant, linear decay to `floor` × peak over the last share `decay`."""

    kind: Literal["wsd"] = "wsd"
    warmup: int = Field(0, ge=0)
    decay: float = Field(0.1, ge=0, le=1)
    floor: float = Field(0.1, ge=0, le=1)

    def factor(self, tokens: float, total_tokens: int) -> float:
        """Multiple of the peak rate after `tokens` of `total_tokens` tokens."""
        warming = tokens / self.warmup if tokens < self.warmup else 1.0
        decay_from = (1.0 - self.decay) * total_tokens
        if tokens <= decay_from or decay_from >= total_tokens:
            return warming
        share = min(1.0, (tokens - decay_from) / (total_tokens - decay_from))
        return min(warming, 1.0 + share * (self.floor - 1.0))


Schedule = Annotated[SegmentSchedule | WarmupStableDecay, Field(discriminator="kind")]


def _line(segment: Segment, begin: int, tokens: float) -> float:
    if segment.end is None:
        return segment.start
    share = (tokens - begin) / (segment.until - begin)
    return segment.start + share * (segment.end - segment.start)
