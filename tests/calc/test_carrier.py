"""Codes of classes: few bits for the first numbers, and each number once."""

from __future__ import annotations

import pytest

from felixpy.calc.policy.carrier import code_of, number_of


@pytest.mark.parametrize("bits", [1, 2, 5, 12])
def test_codes_are_all_numbers_those_with_few_bits_set_first(bits: int) -> None:
    codes = sorted(range(1 << bits), key=lambda code: (code.bit_count(), code))
    assert [code_of(number, bits) for number in range(1 << bits)] == codes
    assert [number_of(code, bits) for code in codes] == list(range(1 << bits))
    assert code_of(1 << bits, bits) == 0
