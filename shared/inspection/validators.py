"""Checksums and rules that tell a number with a meaning from a number that only looks like it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import math
import string
from collections import Counter

import phonenumbers

# National numbers are only believed where these countries' plans call them valid.
PHONE_REGIONS = ("US", "GB", "DE", "FR")
_WEIGHTS_DNI = "TRWAGMYFPDXBNJZSQVHLCKE"


def digits(text: str) -> str:
    """Return the ASCII digits of `text`."""
    return "".join(character for character in text if character in string.digits)


def luhn(text: str) -> bool:
    """Payment cards: ISO/IEC 7812-1 check digit, 13 to 19 digits, not all alike."""
    number = digits(text)
    if not 13 <= len(number) <= 19 or len(set(number)) == 1:
        return False
    total = 0
    for position, character in enumerate(reversed(number)):
        value = int(character) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def iban(text: str) -> bool:
    """IBAN: ISO 13616 check digits (mod 97-10)."""
    code = "".join(text.split()).upper()
    if not 15 <= len(code) <= 34:
        return False
    rearranged = code[4:] + code[:4]
    return int("".join(str(int(character, 36)) for character in rearranged)) % 97 == 1


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
    """German tax id: ISO 7064 MOD 11,10, and one digit that stands two or three times in the first ten."""
    number = digits(text)
    if len(number) != 11 or number[0] == "0":
        return False
    counts = Counter(number[:10])
    if not any(count in (2, 3) for count in counts.values()):
        return False
    product = 10
    for character in number[:10]:
        total = (int(character) + product) % 10 or 10
        product = total * 2 % 11
    return (11 - product) % 10 == int(number[10])


def french_nir(text: str) -> bool:
    """French NIR: key = 97 - number mod 97; Corsican departments count as 19 and 18."""
    code = "".join(text.split()).upper().replace("2A", "19").replace("2B", "18")
    return len(code) == 15 and code.isdigit() and 97 - int(code[:13]) % 97 == int(code[13:])


def ip(text: str) -> bool:
    """IPv4 or IPv6 address that could be somebody's: not unspecified, loopback or documentation-free text."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    return not (address.is_unspecified or address.is_loopback)


def phone(text: str) -> bool:
    """Phone numbers: valid by the numbering plan they claim, or nationally written and valid in a region above."""
    international = text.lstrip(" (").startswith(("+", "00"))
    number = "+" + text.strip()[2:] if text.strip().startswith("00") else text
    for region in (None,) if international else PHONE_REGIONS:
        try:
            if phonenumbers.is_valid_number(phonenumbers.parse(number, region)):
                return international or not _plain_number(text)
        except phonenumbers.NumberParseException:
            continue
    return False


def _plain_number(text: str) -> bool:
    """Say whether it is bare digits or a date: too many order numbers and dates are valid somewhere."""
    stripped = text.strip()
    if stripped.isdigit():
        return True
    for pattern in ("%Y-%m-%d", "%d-%m-%Y", "%d.%m.%Y", "%m/%d/%Y", "%Y/%m/%d"):
        try:
            dt.datetime.strptime(stripped, pattern)  # noqa: DTZ007  (only the form matters)
        except ValueError:
            continue
        return True
    return False


def random_looking(text: str) -> bool:
    """Say whether `text` has the entropy of a generated secret: at least 3 bits a character."""
    counts = Counter(text)
    entropy = -sum(count / len(text) * math.log2(count / len(text)) for count in counts.values())
    return entropy >= 3.0
