"""Detectors of personal data."""

from __future__ import annotations

from shared.inspection import checksums, phone
from shared.inspection.rules import AFTER_WORD, BEFORE_WORD, DIGITS, Rule, Span, where

_CODE = r"(?<![A-Za-z0-9])"
_CODE_END = r"(?![A-Za-z0-9])"
_NUMBER = r"(?<![0-9])"
_NUMBER_END = r"(?![0-9])"
_SEPARATORS = r"[ ().\-/]{0,3}"


def _announced_nhs(candidate: str) -> Span | None:
    start = len(candidate) - 10
    return (start, len(candidate)) if checksums.uk_nhs(candidate[start:]) else None


_NATIONAL_IDS = (
    ("es-dni", rf"{_CODE}[XYZxyz0-9]-?[0-9]{{7}}-?[A-Za-z]{_CODE_END}", checksums.spanish_id),
    ("de-tax-id", rf"{_NUMBER}[0-9]{{2}}(?:[0-9]{{9}}| [0-9]{{3}} [0-9]{{3}} [0-9]{{3}}){_NUMBER_END}", checksums.german_tax_id),
    (
        "fr-nir",
        rf"{_CODE}[12] ?[0-9]{{2}} ?[0-9]{{2}} ?(?:[0-9]{{2}}|2[ABab]) ?[0-9]{{3}} ?[0-9]{{3}} ?[0-9]{{2}}{_CODE_END}",
        checksums.french_nir,
    ),
    ("be-nn", rf"{_NUMBER}[0-9]{{2}}\.[0-9]{{2}}\.[0-9]{{2}}-[0-9]{{3}}\.[0-9]{{2}}{_NUMBER_END}", checksums.belgian_nn),
    (
        "it-cf",
        rf"{_CODE}[A-Za-z]{{6}}[0-9]{{2}}[ABCDEHLMPRSTabcdehlmprst][0-9]{{2}}[A-Za-z][0-9]{{3}}[A-Za-z]{_CODE_END}",
        checksums.italian_cf,
    ),
)  # fmt: skip

_PHONES = (
    (
        "phone-international",
        # Digits after the plus sign: E.164 has up to 15, and "(0)" is often written in between.
        rf"(?<![A-Za-z0-9+])(?:\+|00)[ (]{{0,2}}[1-9](?:{_SEPARATORS}[0-9]){{6,15}}{_NUMBER_END}",
        phone.international,
        1.0,
    ),
    (
        "phone-national",
        r"(?<![A-Za-z0-9+_])(?<![0-9][.,/-])\(?0"
        rf"(?:[0-9]{{9,10}}|[0-9]{{1,5}}\)?(?:[ /.\-]{{1,3}}[0-9]{{2,10}}){{1,5}}){_NUMBER_END}",
        phone.national,
        0.8,
    ),
    (
        "phone-north-american",
        r"(?<![A-Za-z0-9+_])(?<![0-9][.,/-])(?:1[ .-])?"
        rf"(?:\([2-9][0-9]{{2}}\)[ -]?|[2-9][0-9]{{2}}[ .-])[2-9][0-9]{{2}}[ .-][0-9]{{4}}{_NUMBER_END}",
        phone.north_american,
        0.9,
    ),
    (
        "phone-announced",
        rf"{BEFORE_WORD}(?i:phone|tel|telephone|mobile|cell|call|fax|whatsapp|sms|text)[^0-9\n]{{1,16}}[0-9]{{9,11}}{_CODE_END}",
        phone.announced,
        0.8,
    ),
)

PERSONAL: tuple[Rule, ...] = (
    Rule(
        name="email",
        kind="PERSONAL_EMAIL",
        pattern=r"(?<![A-Za-z0-9_.+%-])[A-Za-z0-9_][A-Za-z0-9_.+%'-]{0,63}@"
        r"(?:[A-Za-z0-9\u0080-\U0010ffff-]{1,63}\.){1,8}"
        r"(?:[A-Za-z]{2,24}(?![A-Za-z0-9-])|xn--[A-Za-z0-9-]{1,59}(?![A-Za-z0-9-])|[\u00a1-\U0010ffff]{2,24})",
        needs=("@",),
    ),
    Rule(
        name="iban",
        kind="PERSONAL_IBAN",
        pattern=rf"{_CODE}[A-Za-z]{{2}}[0-9]{{2}}(?:[ -]?[A-Za-z0-9]){{11,30}}{_CODE_END}",
        locate=checksums.iban_span,
        needs=DIGITS,
    ),
    Rule(
        name="card",
        kind="PERSONAL_CARD",
        pattern=rf"{_NUMBER}[0-9]{{4}}(?:[0-9]{{9,15}}"
        r"|(?:[ -][0-9]{4}){3}(?:[ -][0-9]{1,3}(?![0-9]))?|[ -][0-9]{6}[ -][0-9]{4,5})"
        rf"{_NUMBER_END}",
        locate=checksums.card_span,
        needs=DIGITS,
    ),
    Rule(
        name="us-ssn",
        kind="PERSONAL_US_SSN",
        pattern=r"(?<![0-9-])[0-9]{3}(?:-[0-9]{2}-| [0-9]{2} )[0-9]{4}(?![0-9-])",
        locate=where(checksums.us_ssn),
        needs=DIGITS,
    ),
    Rule(
        name="uk-nhs",
        kind="PERSONAL_UK_NHS",
        pattern=r"(?<![0-9-])[0-9]{3}[ -][0-9]{3}[ -][0-9]{4}(?![0-9-])",
        locate=where(checksums.uk_nhs),
        needs=DIGITS,
    ),
    Rule(
        name="uk-nhs-announced",
        kind="PERSONAL_UK_NHS",
        pattern=rf"{BEFORE_WORD}(?i:NHS)[^0-9\n]{{1,24}}[0-9]{{10}}{_CODE_END}",
        locate=_announced_nhs,
        needs=("nhs",),
    ),
    Rule(
        name="uk-nino",
        kind="PERSONAL_UK_NINO",
        pattern=rf"{_CODE}[ABCEGHJ-PRSTW-Z][ABCEGHJ-NPRSTW-Z] ?[0-9]{{2}} ?[0-9]{{2}} ?[0-9]{{2}} ?[A-D]{_CODE_END}",
        locate=where(checksums.uk_nino),
        needs=DIGITS,
    ),
    *(
        Rule(name=name, kind="PERSONAL_NATIONAL_ID", pattern=pattern, locate=where(valid), needs=DIGITS)
        for name, pattern, valid in _NATIONAL_IDS
    ),
    Rule(
        name="ipv4",
        kind="PERSONAL_IP",
        pattern=r"(?<![A-Za-z0-9_.])(?<![Vv]ersion )(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?![0-9]|\.[0-9])",
        locate=where(checksums.ip_address),
        needs=DIGITS,
    ),
    Rule(
        name="ipv6",
        kind="PERSONAL_IP",
        pattern=rf"(?<![A-Za-z0-9_:.])(?:[0-9A-Fa-f]{{0,4}}:){{2,7}}(?:(?:[0-9]{{1,3}}\.){{3}}[0-9]{{1,3}}|[0-9A-Fa-f]{{0,4}}){AFTER_WORD}(?!:)",
        locate=where(checksums.ip_address),
        needs=(":",),
    ),
    *(
        Rule(name=name, kind="PERSONAL_PHONE", pattern=pattern, locate=locate, needs=DIGITS, score=score)
        for name, pattern, locate, score in _PHONES
    ),
)
