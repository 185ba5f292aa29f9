"""Personal data that has a form: addresses of mail and machines, numbers of phones, cards and accounts.

Found by Presidio's recognizers of patterns and checksums, which need no model. Names and places have no form and are
not found: whoever trains on texts of people has to know that.
"""

from __future__ import annotations

from functools import cache
from typing import Any

# What a recognizer is less sure of is mostly order and version numbers.
LEAST_SCORE = 0.4


def personal(text: str) -> list[tuple[str, int, int]]:
    """Return (kind, start, end) of each find, in order, in characters; of finds that overlap, the surest."""
    found = [
        hit for recognizer in _recognizers() for hit in recognizer.analyze(text, recognizer.supported_entities, None)
    ]
    chosen: list[Any] = []
    for hit in sorted(found, key=lambda hit: (-hit.score, hit.start - hit.end)):
        if hit.score >= LEAST_SCORE and all(hit.end <= other.start or hit.start >= other.end for other in chosen):
            chosen.append(hit)
    return sorted((hit.entity_type, hit.start, hit.end) for hit in chosen)


def masked(text: str) -> str:
    """Return ``text`` with each find replaced by its kind: ``<EMAIL_ADDRESS>``."""
    for kind, start, end in sorted(personal(text), key=lambda hit: -hit[1]):
        text = f"{text[:start]}<{kind}>{text[end:]}"
    return text


@cache
def _recognizers() -> list[Any]:
    from presidio_analyzer import predefined_recognizers as known  # seconds, and only who asks for it pays them
    from tldextract import TLDExtract

    domains = TLDExtract(suffix_list_urls=(), cache_dir=None)  # the list it came with: nothing is asked of the network

    class _Email(known.EmailRecognizer):
        def validate_result(self, pattern_text: str) -> bool:
            return bool(domains(pattern_text).fqdn)

    return [
        _Email(),
        known.PhoneRecognizer(supported_regions=("US", "GB", "DE", "FR", "IN")),
        known.CreditCardRecognizer(),
        known.IbanRecognizer(),
        known.IpRecognizer(),
        known.UsSsnRecognizer(),
    ]
