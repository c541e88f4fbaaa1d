"""Personal data in text: e-mail and public IP addresses, replaced by a word for what they were."""

import ipaddress
import re

from data_pipeline.stages.config import Scrub

EMAIL, ADDRESS = "[EMAIL]", "[IP]"
# every part is bounded, and a match begins where no such character stands before: linear time on any text
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?\w)")
_IPV6 = re.compile(r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){3,7}[0-9A-Fa-f]{0,4}(?![\w:])")


def scrub(text: str, settings: Scrub) -> tuple[str, int, int]:
    """The text without them, how many e-mail addresses there were, and how many IP addresses."""
    emails = addresses = 0
    if settings.emails and "@" in text:
        text, emails = _EMAIL.subn(EMAIL, text)
    if settings.addresses:
        for pattern in (_IPV4, _IPV6):
            text, found = _replace_public(text, pattern)
            addresses += found
    return text, emails, addresses


def _replace_public(text: str, pattern: re.Pattern[str]) -> tuple[str, int]:
    count = 0

    def replace(match: re.Match[str]) -> str:
        nonlocal count
        try:
            public = ipaddress.ip_address(match[0]).is_global
        except ValueError:
            public = False
        count += public
        return ADDRESS if public else match[0]

    return pattern.sub(replace, text), count
