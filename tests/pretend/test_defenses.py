"""Every defense on the pretend device: trained there, asked there, differentiated there."""

import importlib.util
from pathlib import Path

import pytest
import torch

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy
from advbench.defenses import DEFENSES
from advbench.tasks.diagnosis import diagnose

_spec = importlib.util.spec_from_file_location("defense_lab", Path(__file__).parents[1] / "defenses" / "conftest.py")
laboratory = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(laboratory)

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def labs():
    there = laboratory.Lab()
    there.device = torch.device("pretend", 0)
    return laboratory.Lab(), there


@pytest.mark.parametrize("name", DEFENSES)
def test_a_defense_is_trained_and_asked_on_its_device(labs, device, name):
    here, there = labs
    fitted, split = there.fitted(name), there.data.validation.to(device)
    assert {value.device for value in fitted.modules().state_dict().values()} <= {device}
    logits = there.logits(fitted, split.x, split.index)
    assert logits.device == device
    expected = here.logits(here.fitted(name), split.x.cpu(), split.index.cpu())
    # Attacks in l1 are equal but for rounding, which training spreads.
    torch.testing.assert_close(logits.cpu(), expected, atol=1e-3 if name.endswith("l1") else 1e-4, rtol=1e-4)
    for surrogate in fitted.surrogates.values():
        surrogate.model.eval()
        x, rng = split.x.clone().requires_grad_(), ExampleRNG.make(0, "attack", split.index)
        answers = surrogate.model(x, rng) if surrogate.stochastic else surrogate.model(x)
        (gradient,) = torch.autograd.grad(cross_entropy(answers, Untargeted(split.y)).sum(), x)
        assert gradient.device == device
        assert gradient.abs().amax() > 0
    if fitted.detector is not None:
        asked = (split.x, ExampleRNG.make(0, "attack", split.index)) if fitted.detector.stochastic else (split.x,)
        assert fitted.detector.model.eval()(*asked).device == device


@pytest.mark.parametrize("name", ["none", "gaussian-noise", "layer-noise", "autoencoder", "defense-gan"])
def test_a_seed_fixes_what_is_drawn_on_the_device_too(labs, device, name):
    _, there = labs
    first = there.fitted(name).modules().state_dict()
    torch.rand(7, device=device)  # moves the device's own generator
    again = there.fit(name).modules().state_dict()
    assert all(torch.equal(first[key], again[key]) for key in first)


@pytest.mark.parametrize("name", ["none", "input-noise", "feature-squeezing"])
def test_the_diagnosis_is_that_of_the_processor(labs, device, name):
    found = [
        diagnose(lab.fitted(name), lab.data.validation, ThreatModel("linf", 0.1), seed=0, draws=2, device=place)
        for lab, place in zip(labs, (CPU, device), strict=True)
    ]
    assert found[0]["images"] > 0
    assert found[0] == found[1]
