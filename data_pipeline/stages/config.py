"""Settings of what is done to documents between source and tokens. Each stage that is not named is off."""

from typing import Annotated, Literal

from pydantic import Field

from data_pipeline.sources.config import SourceConfig
from runtime.settings import Settings

Share = Annotated[float, Field(ge=0, le=1)]


class Scrub(Settings):
    """Replace personal data in the text by `[EMAIL]` and `[IP]`."""

    emails: bool = True
    addresses: bool = True
    """Public IPv4 and IPv6 addresses."""


class Quality(Settings):
    """Rules about a document's words and lines: MassiveText's (Rae et al. 2021, arXiv:2112.11446, appendix A.1.1)."""

    min_words: int = Field(default=50, ge=0)
    max_words: int = Field(default=100_000, gt=0)
    min_word_length: float = Field(default=3, ge=0)
    max_word_length: float = Field(default=10, gt=0)
    """Bounds of the mean, in characters."""
    max_symbols: float = Field(default=0.1, ge=0)
    """`#` for each word, and ellipses for each word."""
    max_bullet_lines: Share = 0.9
    max_ellipsis_lines: Share = 0.3
    min_letter_words: Share = 0.8
    """Share of the words that hold a letter."""
    min_stop_words: int = Field(default=2, ge=0, le=8)
    """How many of the, be, to, of, and, that, have, with must stand in it; 0 for text that is not English."""
    max_digits: Share = 1.0
    """Share of the characters that are digits; not one of MassiveText's rules."""


class Repetition(Settings):
    """Rules about what repeats inside a document: MassiveText's (Rae et al. 2021, table A1), as largest shares."""

    lines: Share = 0.30
    paragraphs: Share = 0.30
    line_characters: Share = 0.20
    paragraph_characters: Share = 0.20
    top_n_grams: dict[int, Share] = {2: 0.20, 3: 0.18, 4: 0.16}  # noqa: RUF012 (pydantic copies defaults)
    """By words of the n-gram: share of the characters that its most frequent one covers."""
    repeated_n_grams: dict[int, Share] = {5: 0.15, 6: 0.14, 7: 0.13, 8: 0.12, 9: 0.11, 10: 0.10}  # noqa: RUF012
    """By words: share of the characters inside n-grams that stood before."""


class C4(Settings):
    """Rules about lines and pages of C4 (Raffel et al. 2020, JMLR 21, section 2.2); lines that break one are cut."""

    terminal_punctuation: bool = True
    """Keep only lines that end in `.`, `!`, `?` or a quotation mark."""
    min_line_words: int = Field(default=5, ge=0)
    javascript: bool = True
    """Remove lines with the word Javascript."""
    min_sentences: int = Field(default=3, ge=0)
    placeholder: bool = True
    """Drop pages with `lorem ipsum`."""
    braces: bool = True
    """Drop pages with `{`."""


class Language(Settings):
    """Tell every document's language (py3langid, ISO 639-1 codes) and keep only those listed, if any are."""

    keep: list[str] = []  # noqa: RUF012
    min_confidence: Share = 0.0
    """Documents told with less are dropped, if `keep` is given."""


class Decontaminate(Settings):
    """Drop documents that share n-grams of words with evaluation sets (13 as in Brown et al. 2020, appendix C)."""

    against: list[SourceConfig] = Field(min_length=1)
    n: int = Field(default=13, ge=3, le=64)
    min_matches: int = Field(default=1, ge=1)


class NearDuplicates(Settings):
    """Drop documents whose sets of word n-grams are alike: MinHash and locality-sensitive hashing (Broder 1997)."""

    threshold: float = Field(default=0.8, gt=0, lt=1)
    """Jaccard similarity from which documents count as duplicates."""
    permutations: int = Field(default=128, ge=16, le=1024)
    n: int = Field(default=5, ge=1, le=32)
    """Words of an n-gram; a character counts as a word in Chinese, Japanese and Korean."""


class StagesConfig(Settings):
    """Stages in the order in which they are done."""

    normalise: Literal["NFC", "NFKC"] | None = None
    """Unicode normal form; without it the text is kept exactly."""
    scrub: Scrub | None = None
    c4: C4 | None = None
    quality: Quality | None = None
    repetition: Repetition | None = None
    language: Language | None = None
    decontaminate: Decontaminate | None = None
    exact_duplicates: bool = True
    near_duplicates: NearDuplicates | None = None
