"""The language of a document, told offline."""

from typing import Any

from data_pipeline.fates import Fate
from data_pipeline.sources.markup import missing
from data_pipeline.stages.config import Language
from runtime.errors import UserError

_CHARACTERS = 4000  # enough to tell, and the time of a long document stays small


class LanguageStage:
    """py3langid's 97 languages (Lui and Baldwin 2012). Raises UserError for a code that it does not know."""

    def __init__(self, settings: Language) -> None:
        try:
            from py3langid.langid import MODEL_FILE, LanguageIdentifier
        except ImportError:
            raise missing("py3langid", "stages.language") from None
        self._settings = settings
        self._model: Any = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        for code in settings.keep:
            if code not in self._model.labels:
                known = ", ".join(sorted(self._model.labels))
                raise UserError(f"stages.language.keep: {code!r} is not one of {known}")

    def judge(self, text: str) -> tuple[str, Fate]:
        """The code of the language, and whether it is kept."""
        code, confidence = self._model.classify(text[:_CHARACTERS])
        wanted = not self._settings.keep or (
            code in self._settings.keep and float(confidence) >= self._settings.min_confidence
        )
        return str(code), Fate.KEPT if wanted else Fate.LANGUAGE
