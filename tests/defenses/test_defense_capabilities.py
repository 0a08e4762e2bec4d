"""What a defense declares, and what holds for one that declares nothing."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from advbench.defenses import DEFENSES, PARTS
from advbench.defenses.capabilities import fits_any_architecture, open_norm, passes_per_image, with_epsilon
from advbench.registry import registry
from advbench.registry.specs import Spec


@dataclass(frozen=True)
class Plain:
    """A plug-in with a budget and nothing else."""

    epsilon: float | None = None


def test_an_open_epsilon_has_the_norm_of_the_defense_or_that_of_the_run():
    assert open_norm(registry.defenses.create(Spec("pgd-l2")), "linf") == "l2"
    assert open_norm(registry.defenses.create(Spec.of("pgd-l2", {"epsilon": 1.0})), "linf") is None
    assert open_norm(registry.defenses.create(Spec("none")), "linf") is None
    assert open_norm(Plain(), "l1") == "l1"
    assert with_epsilon(Plain(), 0.25) == Plain(0.25)
    with pytest.raises(TypeError, match="Expected a dataclass"):
        with_epsilon(object(), 0.25)


def test_parts_that_never_see_a_classifier_say_so():
    assert {name for name in PARTS if fits_any_architecture(registry.parts.create(Spec(name)))} == {
        "dense-dae",
        "dae",
        "dae-pool",
        "generator",
    }
    assert not any(fits_any_architecture(registry.defenses.create(Spec(name))) for name in DEFENSES)


@pytest.mark.parametrize(
    ("name", "passes"), [("none", 1), ("pgd-linf(steps=7)", 8), ("defense-gan", 0), ("total-variation(steps=50)", 0)]
)
def test_a_training_costs_a_pass_for_each_inner_step_and_a_test_time_defense_none(name, passes):
    assert passes_per_image(registry.defenses.create(Spec.parse(name))) == passes
