"""The stages that look at one document at a time, in their order."""

import unicodedata
from pathlib import Path
from typing import NamedTuple

from data_pipeline.fates import Fate
from data_pipeline.stages.config import StagesConfig
from data_pipeline.stages.decontaminate import DecontaminateStage
from data_pipeline.stages.language import LanguageStage
from data_pipeline.stages.quality import apply_c4, judge_quality
from data_pipeline.stages.repetition import judge_repetition
from data_pipeline.stages.scrub import scrub


class Outcome(NamedTuple):
    """A document after the stages, or the rule that it broke."""

    text: str
    fate: Fate = Fate.KEPT
    language: str = ""
    normalised: bool = False
    """Whether the normal form is another text."""
    lines_cut: int = 0
    emails: int = 0
    addresses: int = 0


class Chain:
    """Applies the stages of a configuration. Raises UserError for a missing library or an unknown language."""

    def __init__(self, stages: StagesConfig, reference: Path | None = None) -> None:
        self._stages = stages
        self._language = LanguageStage(stages.language) if stages.language else None
        self._decontaminate = (
            DecontaminateStage(stages.decontaminate, reference) if stages.decontaminate and reference else None
        )

    def apply(self, text: str) -> Outcome:
        """What becomes of a document that holds some text."""
        stages = self._stages
        raw = text
        if stages.normalise:
            text = unicodedata.normalize(stages.normalise, text)
        normalised = text != raw
        emails = addresses = 0
        if stages.scrub:
            text, emails, addresses = scrub(text, stages.scrub)
        text, fate, lines_cut = self._judge(text)
        if fate != Fate.KEPT:
            return Outcome(text, fate)
        language = ""
        if self._language:
            language, fate = self._language.judge(text)
        if fate == Fate.KEPT and self._decontaminate:
            fate = self._decontaminate.judge(text)
        return Outcome(text, fate, language, normalised, lines_cut, emails, addresses)

    def _judge(self, text: str) -> tuple[str, Fate, int]:
        stages, fate, lines_cut = self._stages, Fate.KEPT, 0
        if stages.c4:
            text, fate, lines_cut = apply_c4(text, stages.c4)
        if fate == Fate.KEPT and stages.quality:
            fate = judge_quality(text, stages.quality)
        if fate == Fate.KEPT and stages.repetition:
            fate = judge_repetition(text, stages.repetition)
        return text, fate, lines_cut
