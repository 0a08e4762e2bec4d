"""What a test-time defense gets from its base: inputs, structure and fit, from `wrap` alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from advbench.defenses import DEFENSES
from advbench.defenses.defended import Defended, Defense
from advbench.defenses.inference import at_test_time
from advbench.defenses.inference.composition import in_front_of
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.data import DataSet
from advbench.zoo.training import Budget

AT_TEST_TIME = [name for name, reference in DEFENSES.items() if ".inference." in reference]


class Scaled(nn.Module):
    """A model that sees the image times a buffer."""

    def __init__(self, base: nn.Module, factor: float) -> None:
        super().__init__()
        self.base = base
        self.register_buffer("factor", torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x * self.factor)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scaling(at_test_time.TestTimeDefense):
    """The least that a test-time defense can be."""

    factor: float = 0.5
    base: str = "none"

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        return in_front_of(inputs["base"], lambda model, _: Scaled(model, self.factor), stochastic=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Picky(Scaling):
    """One that has a further model, and takes colour images alone."""

    @property
    def models(self) -> Mapping[str, str]:
        return {"other": "dae(sigma=0.2)"}

    def check(self, data: DataSet) -> None:
        if data.shape[0] != 3:
            raise ValueError("Expected three channels")


def fit(defense: Defense, lab: Any, inputs: Mapping[str, Defended], device: str = "cpu") -> Defended:
    place = torch.device(device)
    return defense.fit(lab.small_net, lab.data, inputs=inputs, seed=0, device=place, budget=Budget(epochs=1))


def test_wrap_is_enough(lab):
    defense, inputs = Scaling(factor=2.0), {"base": lab.fitted("none")}
    assert isinstance(defense, Defense)
    assert defense.inputs == {"base": "none"}
    split, plain = lab.data.validation, lab.fitted("none")
    expected = lab.logits(plain, 2 * split.x, split.index)
    for defended in (fit(defense, lab, inputs), defense.build(lab.small_net, lab.data, inputs)):
        assert list(defended.surrogates) == ["faithful", "base"]
        assert torch.equal(lab.logits(defended, split.x, split.index), expected)


def test_everything_goes_to_the_device(lab):
    defended = fit(Scaling(), lab, {"base": Defended(nn.Linear(2, 2))}, "meta")
    assert {value.device.type for value in defended.modules().state_dict().values()} == {"meta"}


def test_further_models_are_inputs_and_images_may_be_refused(lab):
    defense, inputs = Picky(base="pgd-linf"), {"base": lab.fitted("none")}
    assert defense.inputs == {"base": "pgd-linf", "other": "dae(sigma=0.2)"}
    with pytest.raises(ValueError, match="three channels"):
        defense.build(lab.small_net, lab.data, inputs)
    with pytest.raises(ValueError, match="three channels"):
        fit(defense, lab, inputs)


@pytest.mark.parametrize("name", AT_TEST_TIME)
def test_every_registered_one_is_such_a_defense_and_is_restored_from_what_names_it(name):
    defense = registry.defenses.create(Spec.of(name, {"base": "pgd-l2"}))
    assert isinstance(defense, at_test_time.TestTimeDefense)
    assert defense.inputs["base"] == "pgd-l2"
    assert registry.restore("defenses", registry.content("defenses", Spec(name), defense)) == defense
    assert "base" in {field.name for field in dataclasses.fields(defense)}
