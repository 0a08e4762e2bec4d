"""MALA and MALADE as defenses: how their strength is found, and what they are made of."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.defenses.defended import Defended, Input
from advbench.defenses.inference.composition import purified
from advbench.defenses.inference.denoiser import Denoiser
from advbench.defenses.inference.langevin import Langevin
from advbench.defenses.inference.malade import MALA, MALADE, NOISES, STEP_SIZES, sampler_of, strongest
from advbench.zoo.data import Split

EXPLICIT = "step_size=0.4, noise=0.02"


class Brightness(nn.Module):
    """Class 1 where the mean pixel is above one half."""

    def forward(self, x: Tensor) -> Tensor:
        z = x.flatten(1).mean(dim=1) - 0.5
        return torch.stack((-z, z), dim=1)


class Constant(nn.Module):
    """A denoiser that sees the same grey in everything."""

    def __init__(self, grey: float) -> None:
        super().__init__()
        self.grey = grey

    def forward(self, x: Tensor) -> Tensor:
        return torch.full_like(x, self.grey)


def search(grey: float, x: Tensor, y: Tensor) -> tuple[float, float, float]:
    """What the search finds with a denoiser that pulls every image towards `grey`."""
    sampler = Langevin(
        Constant(grey),
        steps=1,
        decay=1.0,
        step_offset=0.0,
        noise_offset=0.0,
        metropolis=False,
        clip=False,
        stochastic=True,
    )
    defended = purified(Defended(Brightness()), sampler, stochastic=True)
    candidates = [(step, noise) for step in STEP_SIZES for noise in NOISES]
    found = strongest(defended, sampler, x, Split.of(x, y), candidates, seed=0)
    torch.testing.assert_close(sampler.strength, torch.tensor(found[:2]))
    return found


def test_the_search_takes_the_strength_that_labels_most_images_right():
    """Images from 0.1 to 0.9 whose true class is the dark one: the more they are darkened, the more are right."""
    x = torch.linspace(0.1, 0.9, 40).view(-1, 1, 1, 1).expand(-1, 1, 6, 6)
    dark = torch.zeros(40, dtype=torch.int64)
    assert search(0.0, x, dark) == (1.0, 0.0, 1.0)
    step, _, accuracy = search(1.0, x, dark)
    assert step == 0.1
    assert 0.4 < accuracy < 0.5


def test_of_equally_accurate_strengths_the_likelier_is_taken():
    """All images are right however far they move; noise moves no mean, so that the largest step has the best odds."""
    x = torch.full((10, 1, 4, 4), 0.1)
    assert search(0.0, x, torch.zeros(10, dtype=torch.int64))[0] == 1.0


def test_what_is_given_is_not_searched(lab):
    assert set(MALA(step_size=0.4, noise=0.02).inputs) == {"base", "denoiser"}
    assert MALADE().inputs["attacker"] == Input("none", "gu2014/n100-100-10")
    fitted = lab.fitted(f"malade({EXPLICIT})")
    torch.testing.assert_close(sampler_of(fitted).strength, torch.tensor([0.4, 0.02]))
    assert not fitted.facts
    found = lab.fitted("malade(noise=0.05)")
    assert found.facts["noise"] == 0.05
    assert found.facts["step_size"] in STEP_SIZES
    assert 0 <= found.facts["search_accuracy"] <= 1


def test_mala_takes_the_denoiser_of_all_classifiers_and_malade_its_own():
    assert MALA(base="pgd-linf", sigma=0.2).inputs["denoiser"] == "dae(sigma=0.2)"
    assert MALADE(base="pgd-linf", sigma=0.2).inputs["denoiser"] == "sdae(base='pgd-linf', sigma=0.2)"
    assert MALADE(weight=0.0).inputs["denoiser"] == "sdae(base='none', sigma=0.3, weight=0.0)"


def test_one_full_step_without_noise_is_the_reformer_of_magnet(lab):
    split = lab.data.validation
    one = "mala(steps=1, step_size=1, noise=0, step_offset=0, noise_offset=0)"
    assert not lab.fitted(one).stochastic
    logits = [lab.logits(lab.fitted(spec), split.x, split.index) for spec in (one, "magnet(detector=None)")]
    torch.testing.assert_close(*logits)


def test_stands_in_front_of_any_defense_and_of_itself(lab):
    split = lab.data.validation
    for base in ("pgd-linf(steps=1)", "input-noise", f"mala({EXPLICIT})", "magnet"):
        spec = f"mala(base={base!r}, {EXPLICIT})"
        logits = lab.logits(lab.fitted(spec), split.x, split.index)
        assert logits.shape == (len(split), lab.data.n_classes)
    assert lab.fitted(f"mala(base='magnet', {EXPLICIT})").detector is not None


def test_the_surrogates_are_those_of_an_attacker_who_knows_the_defense(lab):
    fitted, split = lab.fitted(f"malade({EXPLICIT})"), lab.data.validation
    assert list(fitted.surrogates) == ["faithful", "bpda", "bpda-one-step", "base"]
    rng = ExampleRNG.make(0, "attack", split.index)
    wanted = fitted.model(split.x, rng)
    gradients = {}
    for name in ("faithful", "bpda", "bpda-one-step"):
        x = split.x.clone().requires_grad_()
        logits = fitted.surrogates[name].model(x, rng)
        torch.testing.assert_close(logits, wanted)
        (gradients[name],) = torch.autograd.grad(cross_entropy(logits, Untargeted(split.y)).sum(), x)
    assert all(not torch.allclose(gradients["faithful"], gradients[name]) for name in ("bpda", "bpda-one-step"))


def test_the_shared_substitute_is_the_denoiser_itself(lab):
    fitted = lab.fitted(f"malade({EXPLICIT})")
    assert isinstance(sampler_of(fitted).denoiser, Denoiser)
    approximate = fitted.surrogates["bpda-one-step"].model.purifier
    assert approximate.substitute is sampler_of(fitted).denoiser


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "Expected `steps` in 1 to 256, got 0"),
        ({"steps": 257}, "Expected `steps` in 1 to 256, got 257"),
        ({"step_size": -0.1}, "Expected `step_size` >= 0"),
        ({"noise_offset": float("nan")}, "Expected `noise_offset` >= 0"),
        ({"decay": 0.0}, "Expected `decay` in"),
        ({"decay": 1.5}, "Expected `decay` in"),
        ({"metropolis": True, "noise_offset": 0.0}, "with `metropolis`"),
    ],
)
def test_refuses_numbers_out_of_range(arguments, message):
    with pytest.raises(ValueError, match=message):
        MALADE(**arguments)


def test_the_metropolis_step_composes_as_the_plain_one(lab):
    split = lab.data.validation
    plain, adjusted = (
        lab.logits(lab.fitted(f"mala({EXPLICIT}{more})"), split.x, split.index) for more in ("", ", metropolis=True")
    )
    assert adjusted.isfinite().all()
    assert not torch.equal(plain, adjusted)
