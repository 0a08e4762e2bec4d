from __future__ import annotations

import math

import pytest

from advbench.reports import formatting
from advbench.results.statistics import Estimate


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (8 / 255, "8/255"),
        (0.3, "0.3"),
        (0.5 / 255, "0.00196078"),
        (1.0, "1"),
        (0.1, "0.1"),
        (None, "any"),
        (16 / 255, "16/255"),
    ],
)
def test_radii_are_fractions_of_255_where_they_are_one(value, text):
    assert formatting.epsilon_text(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0.0, "0 µs"),
        (4e-5, "40 µs"),
        (0.0038, "3.8 ms"),
        (1.5, "1.5 s"),
        (90, "90 s"),
        (600, "10 min"),
        (1e4, "2.78 h"),
    ],
)
def test_times_have_a_unit(value, text):
    assert formatting.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(None, "–"), (math.nan, "–"), (math.inf, "∞"), (0.12345, "0.123"), (9600, "9,600"), (12.0, "12")]
)
def test_numbers_have_three_significant_digits(value, text):
    assert formatting.number(value) == text


def test_rates_are_percentages_with_their_interval():
    entry = formatting.share_entry(Estimate(0.5, 0.401, 0.6))
    assert (entry.text, entry.note, entry.order, entry.interval) == ("50.0%", "40.1–60.0", 0.5, None)
    assert formatting.share_entry(Estimate(math.nan, math.nan, math.nan)).text == "–"
    assert formatting.share_entry(None).order is None


def test_names_of_links_have_safe_letters_only():
    assert formatting.anchor('linf ≤ 8/255 on "><b>mnist') == "linf-8-255-on-b-mnist"
    assert formatting.anchor("≤") == "section"
