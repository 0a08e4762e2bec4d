"""MagNet: the detector's error and threshold, and how it stands beside the classifier."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advbench.defenses.defended import Defended
from advbench.defenses.inference.denoiser import DAE
from advbench.defenses.inference.magnet import MagNet, ReconstructionError, threshold
from advbench.registry import registry
from advbench.zoo.training import Budget

CPU = torch.device("cpu")


class Darker(nn.Module):
    """A reconstruction that misses every pixel by 0.2 of its value."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.8 * x


@pytest.mark.parametrize("p", [1.0, 2.0, 3.5])
def test_the_error_is_a_mean_norm_less_the_threshold(p):
    x = torch.rand(5, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    judge = ReconstructionError(Darker(), p).double()
    judge.threshold.fill_(0.05)
    expected = torch.stack([(0.2 * one).abs().pow(p).mean() ** (1 / p) - 0.05 for one in x])
    torch.testing.assert_close(judge(x), expected)


@pytest.mark.parametrize(("fpr", "rejected"), [(0.0, 0), (0.009, 0), (0.01, 1), (0.25, 25), (0.999, 99)])
def test_the_threshold_rejects_no_more_than_its_share(fpr, rejected):
    errors = torch.rand(100, generator=torch.Generator().manual_seed(0))
    assert int((errors > threshold(errors, fpr)).sum()) == rejected


def test_ties_are_kept_together_below_the_threshold():
    errors = torch.tensor([1.0, 2.0, 2.0, 2.0])
    assert int((errors > threshold(errors, 0.25)).sum()) == 0


@pytest.fixture(scope="module")
def on_digits():
    """MagNet on digits, calibrated for a twentieth of false alarms, and the data."""
    data = registry.load_dataset("digits")
    denoiser = DAE().fit(nn.Identity, data, inputs={}, seed=0, device=CPU, budget=Budget(epochs=2))
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    inputs = {"base": Defended(net), "denoiser": denoiser}
    return MagNet(fpr=0.05).fit(nn.Identity, data, inputs=inputs, seed=0, device=CPU, budget=Budget()), data


def rejected(fitted: Defended, x: Tensor) -> float:
    assert fitted.detector is not None
    with torch.no_grad():
        return float((fitted.detector.model(x) > 0).double().mean())


def test_false_alarms_on_held_out_images_are_as_many_as_asked(on_digits):
    fitted, data = on_digits
    assert rejected(fitted, data.validation.x) == math.floor(0.05 * len(data.validation)) / len(data.validation)
    assert 0.01 < rejected(fitted, data.test.x) < 0.12
    assert fitted.facts["threshold"] == pytest.approx(float(fitted.detector.model.threshold))


def test_images_unlike_the_data_are_rejected(on_digits):
    fitted, data = on_digits
    noise = torch.rand(data.test.x.shape, generator=torch.Generator().manual_seed(0))
    assert rejected(fitted, noise) > 0.95
    assert rejected(fitted, (data.test.x + 0.5 * (noise - 0.5)).clamp(0, 1)) > 0.9


def test_the_classifier_sees_the_reconstruction(lab):
    fitted, split = lab.fitted("magnet"), lab.data.validation
    denoiser, net = lab.fitted("dae").model, lab.fitted("none").model
    torch.testing.assert_close(lab.logits(fitted, split.x, split.index), net(denoiser(split.x)))
    assert lab.fitted("magnet(detector=None)").detector is None


def test_every_surrogate_but_the_base_meets_the_detector(lab):
    surrogates = lab.fitted("magnet").surrogates
    assert [name for name, surrogate in surrogates.items() if surrogate.detector is not None] == [
        "faithful",
        "bpda",
    ]


@pytest.mark.parametrize("arguments", [{"detector": 0.5}, {"detector": math.inf}, {"fpr": 1.0}, {"fpr": -0.1}])
def test_refuses_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="Expected `"):
        MagNet(**arguments)
