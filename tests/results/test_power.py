"""The power of a claim's test: as often as simulated runs decide, and calculations that name a run that would."""

from __future__ import annotations

import numpy as np
import pytest

from advbench.results.crossed import crossed_mean
from advbench.results.papers import load
from advbench.results.power import Deviations, Size, calculations, power, read


@pytest.mark.parametrize(
    ("effect", "deviations", "size"),
    [
        (1.0, Deviations(0.5, 0.0, 0.1), Size(3, 50)),
        (0.4, Deviations(0.0, 2.0, 2.0), Size(3, 100)),
        (0.5, Deviations(0.2, 2.0, 2.0), Size(5, 200)),
        (0.2, Deviations(0.2, 1.0, 1.0), Size(8, 100)),
    ],
)
def test_the_power_is_that_of_simulated_runs(effect, deviations, size):
    rng = np.random.default_rng(11)
    decided = 0
    for _ in range(1_000):
        table = effect + deviations.seed * rng.standard_normal((size.seeds, 1))
        table = table + deviations.image * rng.standard_normal(size.images)
        table = table + deviations.rest * rng.standard_normal((size.seeds, size.images))
        decided += crossed_mean(table).interval().low > 0
    assert power(effect, deviations, size) == pytest.approx(decided / 1_000, abs=0.05)


def test_more_seeds_and_images_tell_more():
    deviations = Deviations(0.3, 10.0, 10.0)
    found = [power(0.3, deviations, size) for size in (Size(3, 300), Size(3, 10_000), Size(8, 10_000), Size(30, 100_000))]
    assert found == sorted(found)
    assert found[-1] > 0.9
    assert power(0.0, deviations, Size(3, 300)) <= 0.03
    with pytest.raises(ValueError, match="at least two seeds and two images, got 1 and 5"):
        power(1.0, deviations, Size(1, 5))


def test_a_calculation_names_a_run_that_decides():
    entry = {
        "claim": "c",
        "scale": "small",
        "effect": 0.5,
        "pilot_seeds": [7, 8],
        "seed_sd": 0.3,
        "image_sd": 5.0,
        "rest_sd": 5.0,
        "seeds": 3,
        "images": 300,
        "deciding_seeds": 8,
        "deciding_images": 10_000,
        "command": "run",
    }
    found = read(entry)
    assert found.power < 0.5
    assert found.speaks_of((0, 1))
    assert not found.speaks_of((8, 9))
    with pytest.raises(ValueError, match=r"c: expected a deciding run of power >= 0.8, got 0\."):
        read({**entry, "deciding_seeds": 3})


def test_the_committed_calculations_are_about_claims():
    for one in calculations():
        assert one.claim in load(one.claim.split(".")[0]).claims
