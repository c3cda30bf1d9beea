"""Quantities: whole numbers with a unit, exactly."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st
from recipe.good_recipes import GOOD, complaints

from mixc.recipe_types import parse_quantity


@pytest.mark.parametrize(
    ("written", "number"),
    [
        (0, 0),
        (200_000, 200_000),
        ("20M", 20_000_000),
        ("1.5B", 1_500_000_000),
        ("1.5G", 1_500_000_000),
        ("200k", 200_000),
        ("200K", 200_000),
        ("3T", 3_000_000_000_000),
        ("0.001k", 1),
        ("1_000M", 10**9),
        ("00.50k", 500),
    ],
)
def test_quantities(written, number):
    assert parse_quantity(written) == number


NO_QUANTITIES = "20 1.5 M 20m 1t 20MB 20MiB 2KK .5M 5.M -1M +1M 1e3M 1.0001k _1k \u0661M"


@pytest.mark.parametrize(
    "written", [1.5, 1e6, "", " 1M", "1 M", "1M\n", "9" * 40 + "k", *NO_QUANTITIES.split(" ")]
)
def test_what_is_no_quantity(written):
    with pytest.raises(ValueError, match="expected a"):
        parse_quantity(written)


@pytest.mark.parametrize(
    "written", ["-1", "true", "null", "[1]", "9223372036854775808", "10000000T"]
)
def test_quantities_out_of_range_or_of_another_type(write, written):
    assert "MX007" in complaints(write(GOOD), f"holdout.max_tokens={written}")


@given(st.integers(0, 10**6), st.integers(0, 999), st.sampled_from("kMBGT"))
def test_quantities_are_exact(whole, thousandths, unit):
    value = Fraction(f"{whole}.{thousandths:03}")
    value *= {"k": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}[unit]
    assert parse_quantity(f"{whole}.{thousandths:03}{unit}") == value
