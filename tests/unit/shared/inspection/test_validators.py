"""Checksums and numbering plans against published test numbers."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from shared.inspection import validators

GOOD: dict[Callable[[str], bool], tuple[str, ...]] = {
    validators.card: (
        "4111111111111111",
        "5555 5555 5555 4444",
        "378282246310005",
        "30569309025904",
        "6011111111111117",
    ),
    validators.iban: (
        "DE89 3704 0044 0532 0130 00",
        "GB82WEST12345698765432",
        "FR1420041010050500013M02606",
        "NO9386011117947",
    ),
    validators.ssn: ("536-90-4399", "899-99-9999"),
    validators.nhs: ("943 476 5919", "401-023-2137"),
    validators.dni: ("12345678Z", "X1234567L", "Y-1234567-X", "00000000T"),
    validators.german_tax_id: ("86095742719", "47036892816", "65929970489"),
    validators.french_nir: ("255081416802538", "2 55 08 14 168 025 38"),
    validators.ip: ("203.0.113.77", "192.168.1.20", "2001:db8::1", "2001:db8:85a3::8a2e:370:7334"),
    validators.international_phone: ("+44 20 7946 0958", "+1 650-253-0000", "0049 30 123456", "+33 1 42 68 53 00"),
    validators.national_phone: ("020 7946 0958", "01 42 68 53 00", "07912345678", "0612345678", "030 1234567"),
    validators.north_american_phone: ("(650) 253-0000", "1-650-253-0000", "650.253.0000"),
    validators.secret_assignment: ("password=hunter2hunter2", "api_key: 9f8e7d6c5b4a"),
}
BAD: dict[Callable[[str], bool], tuple[str, ...]] = {
    validators.card: ("4111111111111112", "0000000000000000", "411111111111", "1234567812345678"),
    validators.iban: ("DE89 3704 0044 0532 0130 01", "GB82WEST12345698765433"),
    validators.ssn: ("000-12-3456", "666-12-3456", "900-12-3456", "123-00-4567", "123-45-0000"),
    validators.nhs: ("943 476 5918", "987 654 4320"),
    validators.dni: ("12345678A", "X1234567A"),
    validators.german_tax_id: ("86095742718", "01234567890", "12345678901", "11111111111"),
    validators.french_nir: ("255081416802539",),
    validators.ip: (
        "1.2.3.256",
        "127.0.0.1",
        "0.0.0.0",
        "255.255.255.0",
        "120.0.0.0",
        "::1",
        "1::2",
        "224.0.0.1",
        "12:30:45",
    ),
    validators.international_phone: ("+1 123 456 7890", "+999 12345678", "+000000000"),
    validators.national_phone: ("01.02.2024", "01.02.2024 12", "030712.345216", "0123456789", "01234567890"),
    validators.north_american_phone: ("123-456-7890", "555-055-5555"),
    validators.secret_assignment: ("password: required", "secret=os.environ", "password=get(1)", "token=${TOKEN_1}"),
}


@pytest.mark.parametrize(("valid", "text"), [(valid, text) for valid, texts in GOOD.items() for text in texts])
def test_good_numbers_are_valid(valid: Callable[[str], bool], text: str) -> None:
    assert valid(text)


@pytest.mark.parametrize(("valid", "text"), [(valid, text) for valid, texts in BAD.items() for text in texts])
def test_bad_numbers_are_not_valid(valid: Callable[[str], bool], text: str) -> None:
    assert not valid(text)


@pytest.mark.parametrize("text", GOOD[validators.card] + GOOD[validators.nhs] + GOOD[validators.german_tax_id])
def test_one_wrong_digit_is_noticed(text: str) -> None:
    valid = next(valid for valid, texts in GOOD.items() if text in texts)
    last = len(text) - 1
    assert not any(valid(text[:last] + digit) for digit in "0123456789" if digit != text[last])
