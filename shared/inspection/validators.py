"""Checksums and rules that tell a number with a meaning from a number that only looks like it."""

from __future__ import annotations

import ipaddress
import string
from collections import Counter
from collections.abc import Mapping

import phonenumbers
import regex

NATIONAL_REGIONS = ("GB", "DE", "FR")
"""Countries whose phone numbers are believed without a country code; North America's have a form of their own."""
_BARE = regex.compile(r"07[1-9][0-9]{8}|0[67][0-9]{8}|01[567][0-9]{8,9}")
# Dates, decimals, and digits in fours, as no phone is written but some mobile ones.
_NO_NATIONAL = regex.compile(
    r"(?:0[1-9]|[12][0-9]|3[01])([./-])(?:0[1-9]|1[0-2])\1(?:[12][0-9]{3}|[0-9]{2})(?![0-9]|\1[0-9])|[0-9]+\.[0-9]+\Z"
    r"|(?!01[567])[0-9]{4}(?: [0-9]{4})+\Z"
)
# Visa; Mastercard; American Express; Diners Club; JCB; Discover, UnionPay and Maestro.
_SCHEMES = regex.compile(
    r"4(?:[0-9]{12}|[0-9]{15}|[0-9]{18})|(?:5[1-5][0-9]{2}|222[1-9]|22[3-9][0-9]|2[3-6][0-9]{2}|27[01][0-9]|2720)[0-9]{12}"
    r"|3[47][0-9]{13}|3(?:0[0-59]|6[0-9]|[89][0-9])[0-9]{11,16}|35(?:2[89]|[3-8][0-9])[0-9]{12,15}"
    r"|(?:50|5[6-8]|6[0-9])[0-9]{11,17}"
)
# A call or an index, and what a template or a shell puts a value for.
_CODE = regex.compile(r"[\w)\]][(\[]|[$#{]\{|\$\(|[\s:=>][${]")
_DOUBLED = str.maketrans("0123456789", "0246813579")
_LETTER_VALUES = str.maketrans({letter: str(value) for value, letter in enumerate(string.ascii_uppercase, start=10)})
_WEIGHTS_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"

IBAN_LENGTHS: Mapping[int, tuple[str, ...]] = {
    length: tuple(countries.split())
    for length, countries in {
        15: "NO",
        16: "BE",
        18: "DK FI FK FO GL NL SD",
        19: "MK SI",
        20: "AT BA EE KZ LT LU MN XK",
        21: "CH HR LI LV",
        22: "BG BH CR DE GB GE IE ME RS VA",
        23: "AE GI IL IQ OM SO TL",
        24: "AD CZ ES MD PK RO SA SE SK TN VG",
        25: "LY PT ST",
        26: "IS TR",
        27: "BI DJ FR GR IT MC MR SM",
        28: "AL AZ BY CY DO GT HN HU LB NI PL SV",
        29: "BR EG PS QA UA",
        30: "JO KW MU YE",
        31: "MT SC",
        32: "LC",
        33: "RU",
    }.items()
}
"""Countries by the length of their IBANs (SWIFT IBAN registry, release 99)."""


def digits(text: str) -> str:
    """Return the ASCII digits of `text`."""
    return "".join(character for character in text if character in string.digits)


def card(text: str) -> bool:
    """Payment cards: a scheme's first digits and lengths, the check digit of ISO/IEC 7812-1, and no article number.

    Of 13 digits are the oldest Visa cards and the article numbers (GS1 GTIN-13) of Germany, which have another kind of
    check digit.
    """
    number = digits(text)
    if not _SCHEMES.fullmatch(number) or (len(number) == 13 and _article(number)):
        return False
    return (sum(map(int, number[-1::-2])) + sum(map(int, number[-2::-2].translate(_DOUBLED)))) % 10 == 0


def _article(number: str) -> bool:
    return sum(int(digit) * (3 if at % 2 else 1) for at, digit in enumerate(number)) % 10 == 0


def iban(text: str) -> bool:
    """IBAN: ISO 13616 check digits (mod 97-10); the pattern gives each country its length."""
    code = "".join(filter(str.isalnum, text)).upper()
    return int((code[4:] + code[:4]).translate(_LETTER_VALUES)) % 97 == 1


def varied(text: str) -> bool:
    """Whether there is more than one kind of character."""
    return len(set(text)) > 1


def ssn(text: str) -> bool:
    """US SSN: areas 000, 666 and 900-999, group 00 and serial 0000 are never issued."""
    number = digits(text)
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def nhs(text: str) -> bool:
    """NHS number: modulus 11 check digit (NHS Data Dictionary)."""
    number = digits(text)
    check = 11 - sum(int(character) * (10 - position) for position, character in enumerate(number[:9])) % 11
    return len(number) == 10 and check != 10 and check % 11 == int(number[9])


def dni(text: str) -> bool:
    """Spanish DNI/NIE: letter modulo 23."""
    code = text.upper().replace("-", "").replace(" ", "")
    number = code[:-1].replace("X", "0").replace("Y", "1").replace("Z", "2")
    return number.isdigit() and _WEIGHTS_DNI[int(number) % 23] == code[-1]


def german_tax_id(text: str) -> bool:
    """German tax id: ISO 7064 MOD 11,10; of the first ten digits exactly one repeats, two or three times."""
    number = digits(text)
    if len(number) != 11 or number[0] == "0":
        return False
    repeated = [count for count in Counter(number[:10]).values() if count > 1]
    if repeated not in ([2], [3]):
        return False
    product = 10
    for character in number[:10]:
        total = (int(character) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(number[10])


def french_nir(text: str) -> bool:
    """French NIR: key = 97 - number mod 97; Corsican departments count as 19 and 18."""
    code = text.replace(" ", "").replace("2A", "19").replace("2B", "18")
    return len(code) == 15 and code.isdigit() and 97 - int(code[:13]) % 97 == int(code[13:])


def ip(text: str) -> bool:
    """IPv4 or IPv6 address that could be somebody's host.

    What is unspecified, loopback, multicast or reserved is not, nor is a network's own (x.y.0.0), which is how versions
    look, nor an IPv6 address of fewer than three groups, which is how slices look.
    """
    try:
        address = ipaddress.ip_address(text.replace("[", "").replace("]", ""))
    except ValueError:
        return False
    if address.is_unspecified or address.is_loopback or address.is_multicast:
        return False
    if address.version == 4:
        return not (address.is_reserved or text.startswith("0.") or text.endswith(".0.0"))
    return len([group for group in text.split(":") if group]) >= 3


def international_phone(text: str) -> bool:
    """Phone numbers from + or 00 on: valid by the numbering plan of their country."""
    compact = digits(text)
    if text.startswith("00"):
        compact = compact[2:]
    return 7 <= len(compact) <= 15 and _numbered("+" + compact, None)


def national_phone(text: str) -> bool:
    """Phone numbers from a trunk 0 on: valid in a country of NATIONAL_REGIONS, and neither dates nor decimals.

    Bare digits only where they can be a mobile number: too many identifiers are valid somewhere.
    """
    compact = digits(text)
    if not 10 <= len(compact) <= 12 or _NO_NATIONAL.match(text):
        return False
    if compact == text:
        return _BARE.fullmatch(text) is not None
    return any(_numbered(compact, region) for region in NATIONAL_REGIONS)


def north_american_phone(text: str) -> bool:
    """Phone numbers of the form 3-3-4: valid in the North American plan."""
    return _numbered("+1" + digits(text)[-10:], None)


def secret_assignment(text: str) -> bool:
    """Whether a value, after a name without digits, looks made up (it holds a digit) and is no call or variable."""
    return any(character in string.digits for character in text) and not _CODE.search(text)


def _numbered(number: str, region: str | None) -> bool:
    try:
        return phonenumbers.is_valid_number(phonenumbers.parse(number, region))
    except phonenumbers.NumberParseException:
        return False
