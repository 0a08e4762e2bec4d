"""Local optimality and envelopes: by hand, by integrating the two curves, and what makes envelopes comparable."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from advbench.results.cells import Cell
from advbench.results.optimality import envelope_of, local_optimality


@pytest.fixture
def scored_cells(make_record, make_examples):
    """Three attacks on one model, of four images at distance 0.1."""
    attacks = [{"label": name, "name": name, "arguments": {}, "minimal_norm": False, "source_hash": ""} for name in "abc"]
    return [Cell(make_record(attack=attack), make_examples()) for attack in attacks]


DISTANCES = st.one_of(st.just(np.inf), st.floats(0.01, 10, allow_nan=False))


def area_under(distances, farthest):
    """The integral of robust accuracy over epsilon from 0 to `farthest`, step by step between the distances."""
    ends = np.unique(np.concatenate(([0.0], distances[distances < farthest], [farthest])))
    return sum((high - low) * float((distances > low).mean()) for low, high in pairwise(ends))


@given(arrays(np.float64, (3, 12), elements=DISTANCES), st.integers(0, 11))
def test_it_is_the_share_of_the_area_that_the_envelope_takes(reached, wrong):
    reached = np.hstack((reached, np.zeros((3, wrong))))
    nearest = reached.min(axis=0)
    finite = nearest[np.isfinite(nearest) & (nearest > 0)]
    if not len(finite):
        assert np.isnan(local_optimality(reached[0], nearest))
        return
    farthest = finite.max()
    whole = farthest * float((nearest > 0).mean())
    best = area_under(nearest, farthest)
    for row in reached:
        found = local_optimality(row, nearest)
        if whole - best > 1e-9:
            assert found == pytest.approx(1 - (area_under(row, farthest) - best) / (whole - best), abs=1e-9)
            assert -1e-12 <= found <= 1 + 1e-12
        else:
            assert np.isnan(found) or found <= 1


def test_the_envelope_itself_has_one_and_failures_have_none():
    nearest = np.array([0.0, 1.0, 2.0, 4.0])
    assert local_optimality(nearest, nearest) == 1.0
    assert local_optimality(np.array([0.0, np.inf, np.inf, np.inf]), nearest) == 0.0
    assert local_optimality(np.array([0.0, 2.0, 3.0, 4.0]), nearest) == pytest.approx((2 + 1 + 0) / (3 + 2 + 0))
    assert np.isnan(local_optimality(np.zeros(3), np.zeros(3)))


def test_where_no_attack_broke_anything_there_is_no_score():
    never = np.full(5, np.inf)
    assert np.isnan(local_optimality(never, never))


def test_an_envelope_is_of_one_set_of_images(scored_cells):
    with pytest.raises(ValueError, match="at least one scored cell"):
        envelope_of([])
    one, other = scored_cells[:2]
    moved = dataclasses.replace(other, examples=dataclasses.replace(other.examples, index=other.examples.index + 1))
    with pytest.raises(ValueError, match="same images"):
        envelope_of([one, moved])


def test_the_digest_names_who_is_in_it(scored_cells):
    whole, order, fewer = envelope_of(scored_cells), envelope_of(scored_cells[::-1]), envelope_of(scored_cells[:-1])
    assert whole.digest == order.digest != fewer.digest
    record = scored_cells[0].record
    stronger = dataclasses.replace(record, attack={**record.attack, "arguments": {"steps": 7}})
    changed = [dataclasses.replace(scored_cells[0], record=stronger), *scored_cells[1:]]
    assert envelope_of(changed).digest != whole.digest
