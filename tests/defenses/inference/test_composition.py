"""Test-time defenses in front of one another: the rng reaches every part, and every surrogate is kept."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.defended import Defended, Detector, Surrogate
from advbench.defenses.inference.blur import GaussianBlur, blur
from advbench.defenses.inference.composition import call, in_front_of
from advbench.zoo import checkpoints


def test_blur_in_front_of_noise_passes_the_rng_on(lab):
    noisy, both = lab.fitted("input-noise"), lab.fitted("gaussian-blur(base='input-noise')")
    split = lab.data.validation
    assert both.stochastic
    rng = ExampleRNG.make(0, "oracle", split.index)
    expected = noisy.model(blur(split.x, GaussianBlur().kernel()), rng)
    torch.testing.assert_close(both.model(split.x, rng), expected)
    with pytest.raises(ValueError, match="Expected `rng`"):
        both.model(split.x)


def test_nested_noise_draws_twice(lab):
    once, twice = lab.fitted("input-noise(passes=2)"), lab.fitted("input-noise(passes=1,base='input-noise(passes=2)')")
    split = lab.data.validation
    assert not torch.allclose(lab.logits(twice, split.x, split.index), lab.logits(once, split.x, split.index))
    seen = []
    hook = twice.model.base.base.register_forward_hook(lambda _, inputs, __: seen.append(inputs[0].detach()))
    lab.logits(twice, torch.zeros_like(split.x), split.index)
    hook.remove()
    assert seen[0].std() == pytest.approx(0.1 * 2**0.5, rel=0.1)  # independent noises add their variances
    assert len(torch.unique(seen[0].flatten(1), dim=0)) == 2 * len(split)


def test_a_trained_defense_may_stand_behind_blur(lab):
    behind, blurred = lab.fitted("pgd-linf"), lab.fitted("gaussian-blur(base='pgd-linf')")
    x = lab.data.validation.x
    torch.testing.assert_close(blurred.model(x), behind.model(blur(x, GaussianBlur().kernel())))


@pytest.mark.parametrize("spec", ["gaussian-blur(base='input-noise')", "input-noise(base='gaussian-blur')"])
def test_a_checkpoint_of_a_composition_loads_into_the_built_structure(lab, spec, tmp_path):
    split, fitted, built = lab.data.validation, lab.fitted(spec), lab.build(spec)
    checkpoints.save(tmp_path / "weights.safetensors", fitted.modules(), {})
    checkpoints.load(tmp_path / "weights.safetensors", built.modules())
    assert torch.equal(lab.logits(built, split.x, split.index), lab.logits(fitted, split.x, split.index))
    assert list(fitted.surrogates) == ["faithful", "faithful-base", "base"]


class Outer(nn.Module):
    def __init__(self, inner: nn.Module, stochastic: bool) -> None:
        super().__init__()
        self.inner = inner
        self.stochastic = stochastic


def test_wraps_every_surrogate_and_keeps_the_first_bare():
    model, faithful, smooth = nn.Identity(), nn.Identity(), nn.Identity()
    surrogates = {"faithful": Surrogate(faithful, True), "bpda": Surrogate(smooth)}
    outer = in_front_of(Defended(model, True, surrogates), Outer, stochastic=False)
    assert outer.stochastic
    assert outer.model.inner is model
    assert list(outer.surrogates) == ["faithful", "faithful-bpda", "base"]
    inner = [outer.surrogates[name].model.inner for name in ("faithful", "faithful-bpda")]
    assert inner[0] is faithful
    assert inner[1] is smooth
    assert outer.surrogates["base"].model is faithful
    assert [surrogate.stochastic for surrogate in outer.surrogates.values()] == [True, False, True]


def test_a_detector_set_beside_a_wrapped_model_is_evaded_by_all_but_the_attacker_who_ignores_it():
    wrapped = in_front_of(Defended(nn.Identity()), Outer, stochastic=False)
    detector = Detector(nn.Identity())
    guarded = dataclasses.replace(wrapped, detector=detector).surrogates
    assert {name: surrogate.detector for name, surrogate in guarded.items()} == {"faithful": detector, "base": None}


def test_call_hands_the_rng_only_to_stochastic_models():
    rng = ExampleRNG.make(0, "oracle", torch.arange(2))
    x = torch.zeros(2, 3)
    assert torch.equal(call(nn.Identity(), x, rng, stochastic=False), x)
    with pytest.raises(ValueError, match="Expected `rng`, an ExampleRNG of the images, got None"):
        call(nn.Identity(), x, None, stochastic=True)
