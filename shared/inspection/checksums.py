"""Checksums and issuing rules that tell a number with a meaning from one that only looks like it."""

from __future__ import annotations

import datetime as dt
import ipaddress
import re
import string
from collections import Counter

# ISO 13616 registry, release 99: length of an IBAN by country.
_IBAN_LENGTHS = {
    country: int(length)
    for length, countries in {
        "15": "NO", "16": "BE", "18": "DK FI FK FO GL NL SD", "19": "MK SI", "20": "AT BA EE KZ LT LU MN XK",
        "21": "CH HR LI LV", "22": "BG BH CR DE GB GE IE ME RS VA", "23": "AE GI IL IQ OM SO TL",
        "24": "AD CZ ES MD PK RO SA SE SK TN VG", "25": "LY PT ST", "26": "IS TR", "27": "BI DJ FR GR IT MC MR SM",
        "28": "AL AZ BY CY DO GT HN HU LB NI PL SV", "29": "BR EG PS QA UA", "30": "JO KW MU YE", "31": "MT SC",
        "32": "LC", "33": "RU",
    }.items()
    for country in countries.split()
}  # fmt: skip
# ISO/IEC 7812 ranges of the card networks.
_CARD_ISSUERS = re.compile(
    r"4|5[0-8]|6[0-9]|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)|3[47]|35(?:2[89]|[3-8]\d)|3(?:0[0-5]|095|6|8|9)"
)
_DNI_LETTERS = "TRWAGMYFPDXBNJZSQVHLCKE"
_CODICE_ODD = (1, 0, 5, 7, 9, 13, 15, 17, 19, 21, 2, 4, 18, 20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23)


def digits(text: str) -> str:
    """Return the ASCII digits of `text`."""
    return "".join(character for character in text if character in string.digits)


def card(text: str) -> bool:
    """Payment card: ISO/IEC 7812-1 check digit (Luhn), an issuer's prefix, 13 to 19 digits."""
    number = digits(text)
    if not (13 <= len(number) <= 19 and _CARD_ISSUERS.match(number)) or len(set(number)) == 1:
        return False
    total = 0
    for position, character in enumerate(reversed(number)):
        value = int(character) * (2 if position % 2 else 1)
        total += value - 9 if value > 9 else value
    return total % 10 == 0


def card_span(text: str) -> tuple[int, int] | None:
    """Return the span of the card number that `text` is, or is but for a last group (a CVV, the year of expiry)."""
    last_group = max(text.rfind(" "), text.rfind("-"))
    return next(((0, end) for end in (len(text), last_group) if end > 0 and card(text[:end])), None)


def iban_span(text: str) -> tuple[int, int] | None:
    """Return the span of the IBAN that `text` begins with: ISO 13616, its country's length, MOD 97-10."""
    length = _IBAN_LENGTHS.get(text[:2].upper(), 0)
    places = [index for index, character in enumerate(text) if character.isalnum()][: length + 1]
    if not length or len(places) < length:
        return None
    end = places[length - 1] + 1
    if len(places) > length and places[length] == end:
        return None
    code = "".join(text[index] for index in places[:length]).upper()
    number = int("".join(str(int(character, 36)) for character in code[4:] + code[:4]))
    return (0, end) if number % 97 == 1 else None


def us_ssn(text: str) -> bool:
    """US SSN: areas 000, 666 and 900-999, group 00 and serial 0000 are never issued (SSA POMS RM 10201.035)."""
    number = digits(text)
    area, group, serial = number[:3], number[3:5], number[5:]
    return area not in ("000", "666") and area < "900" and group != "00" and serial != "0000"


def uk_nhs(text: str) -> bool:
    """NHS number: modulus 11 check digit (NHS Data Dictionary)."""
    number = digits(text)
    if len(number) != 10 or len(set(number)) == 1:
        return False
    check = 11 - sum(int(character) * (10 - position) for position, character in enumerate(number[:9])) % 11
    return check != 10 and check % 11 == int(number[9])


def uk_nino(text: str) -> bool:
    """UK National Insurance number: prefixes that are never allocated (HMRC NIM39110)."""
    return text[:2] not in ("BG", "GB", "KN", "NK", "NT", "TN", "ZZ")


def spanish_id(text: str) -> bool:
    """Spanish DNI or NIE: letter modulo 23 (Real Decreto 1553/2005)."""
    code = text.upper().replace("-", "")
    number = {"X": "0", "Y": "1", "Z": "2"}.get(code[0], code[0]) + code[1:-1]
    return _DNI_LETTERS[int(number) % 23] == code[-1]


def german_tax_id(text: str) -> bool:
    """German tax id: ISO 7064 MOD 11,10; of the first ten digits just one stands two or three times."""
    number = digits(text)
    repeated = [count for count in Counter(number[:10]).values() if count > 1]
    if len(number) != 11 or number[0] == "0" or repeated not in ([2], [3]):
        return False
    product = 10
    for character in number[:10]:
        product = ((int(character) + product) % 10 or 10) * 2 % 11
    return (11 - product) % 10 == int(number[10])


def french_nir(text: str) -> bool:
    """French NIR: key = 97 - number mod 97; Corsican departments count as 19 and 18."""
    code = "".join(text.split()).upper()
    number = code[:13].replace("2A", "19").replace("2B", "18")
    return 97 - int(number) % 97 == int(code[13:])


def belgian_nn(text: str) -> bool:
    """Belgian national number: 97 - number mod 97, with a 2 in front for births from 2000 on."""
    number = digits(text)
    return any(97 - int(century + number[:9]) % 97 == int(number[9:]) for century in ("", "2"))


def italian_cf(text: str) -> bool:
    """Italian codice fiscale: check letter (Decreto 12 marzo 1974, art. 11)."""
    code = text.upper()
    values = [int(character) if character.isdigit() else ord(character) - 65 for character in code]
    total = sum(value if index % 2 else _CODICE_ODD[value] for index, value in enumerate(values[:15]))
    return chr(65 + total % 26) == code[15]


def ip_address(text: str) -> bool:
    """Say whether it is an IPv4 or IPv6 address other than loopback, unspecified, or what only reads like hex words."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if address.version == 6 and not digits(text) and text.count(":") < 5:
        return False
    return not (address.is_unspecified or address.is_loopback)


def date(text: str) -> bool:
    """Say whether it is a date in a common numeric form."""
    for pattern in ("%Y-%m-%d", "%d-%m-%Y", "%d.%m.%Y", "%d.%m.%y", "%m/%d/%Y", "%d/%m/%Y", "%d/%m/%y", "%Y/%m/%d"):
        try:
            dt.datetime.strptime(text, pattern)  # noqa: DTZ007  (only the form matters)
        except ValueError:
            continue
        return True
    return False
