"""Feature squeezing: its distance by hand, its threshold on clean validation images, and what the attacker evades."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from advbench.attacks.rng import ExampleRNG
from advbench.defenses.inference.bit_depth import rounded
from advbench.defenses.inference.feature_squeezing import FeatureSqueezing, threshold_at

SPEC = "feature-squeezing(bits=1, median=3, false_alarms=0.25)"


def score(defended, x, index):
    """The detector's scores, (n,)."""
    detector = defended.detector
    detector.model.eval()
    rng = ExampleRNG.make(0, "oracle", index)
    return detector.model(x, rng) if detector.stochastic else detector.model(x)


def test_the_score_is_the_largest_l1_distance_less_the_threshold(lab):
    base, squeezed, x = lab.fitted("none"), lab.fitted(SPEC), lab.data.validation.x
    smooth = torch.from_numpy(ndimage.median_filter(x.numpy(), size=(1, 1, 3, 3), mode="reflect"))
    with torch.no_grad():
        plain, *others = (base.model(each).softmax(dim=1) for each in (x, rounded(x, 1), smooth))
        expected = torch.stack([(plain - other).abs().sum(dim=1) for other in others]).amax(dim=0)
        found = squeezed.detector.model(x)
    torch.testing.assert_close(found + squeezed.facts["threshold"], expected)
    torch.testing.assert_close(squeezed.model(x), base.model(x))  # the answer is the base's


@pytest.mark.parametrize("rate", [0.0, 0.05, 0.25, 0.5])
def test_the_threshold_lets_no_more_false_alarms_through_than_it_says(lab, rate):
    defended = lab.fitted(f"feature-squeezing(false_alarms={rate})")
    split = lab.data.validation
    alarms = float((score(defended, split.x, split.index) > 0).double().mean())
    assert alarms == defended.facts["false_alarms"]
    assert rate - 1 / len(split) < alarms <= rate  # and not fewer than it may


def test_a_threshold_stands_on_order_statistics():
    distances = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.5])
    assert threshold_at(distances, 0.0) == pytest.approx(0.5)
    assert threshold_at(distances, 0.2) == pytest.approx(0.4)
    assert threshold_at(distances, 0.39) == pytest.approx(0.4)
    assert threshold_at(torch.ones(10), 0.5) == 1.0  # equal distances are no alarms


def test_noise_that_squeezing_takes_away_is_rejected_more_often_than_clean_images(lab):
    """Single pixels of salt move the prediction of an image, and the median takes them away."""
    defended, split = lab.fitted("feature-squeezing(median=3, bits=8, false_alarms=0.25)"), lab.data.validation
    copies = torch.arange(len(split)).repeat(20)
    salt = torch.rand(len(copies), 1, 8, 8, generator=torch.Generator().manual_seed(0)) < 0.2
    salted = torch.where(salt, 1 - split.x[copies].round(), split.x[copies])
    with torch.no_grad():
        rejected = float((score(defended, salted, copies) > 0).double().mean())
    assert rejected > defended.facts["false_alarms"] + 0.05


def test_the_attacker_evades_the_detector_with_a_gradient_through_every_squeezer(lab):
    defended, split = lab.fitted(SPEC), lab.data.validation
    assert list(defended.surrogates) == ["faithful", "base", "faithful-sum"]
    assert defended.surrogates["faithful"].detector is defended.detector
    assert not defended.surrogates["base"].guarded
    x = split.x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(defended, x, split.index).sum(), x)
    assert gradient.isfinite().all()
    assert gradient.abs().amax(dim=(1, 2, 3)).gt(0).all()


def test_the_gradient_through_the_rounding_is_that_of_the_identity(lab):
    base, split = lab.fitted("none"), lab.data.validation
    squeezer = FeatureSqueezing(bits=1).squeezers()[0]
    x, at = split.x.clone().requires_grad_(), rounded(split.x, 1).requires_grad_()
    (found,) = torch.autograd.grad(base.model(squeezer(x))[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(base.model(at)[:, 0].sum(), at)
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("base", ["bit-depth", "input-noise(passes=2)", "gaussian-blur", "pgd-linf", SPEC])
def test_watches_any_defense(lab, base):
    behind, defended, split = lab.fitted(base), lab.fitted(f"feature-squeezing(base={base!r})"), lab.data.validation
    assert defended.stochastic == defended.detector.stochastic == behind.stochastic
    assert len(defended.own_surrogates) == len(behind.own_surrogates) + 1
    assert [name for name, one in defended.surrogates.items() if one.weight is not None] == ["faithful-sum"]
    assert score(defended, split.x, split.index).shape == (len(split),)
    if behind.detector is not None:  # either one rejects
        assert (score(defended, split.x, split.index) >= score(behind, split.x, split.index)).all()
    for surrogate in defended.surrogates.values():
        if surrogate.guarded:
            x, rng = split.x.clone().requires_grad_(), ExampleRNG.make(0, "attack", split.index)
            detector = surrogate.detector
            found = detector.model(x, rng) if detector.stochastic else detector.model(x)
            (gradient,) = torch.autograd.grad(found.sum(), x)
            assert gradient.abs().amax() > 0


def test_rows_are_judged_alone(lab):
    defended, split = lab.fitted("feature-squeezing(base='input-noise(passes=2)')"), lab.data.validation
    rows = torch.tensor([3, 0, 7])
    together = score(defended, split.x, split.index)
    torch.testing.assert_close(score(defended, split.x[rows], split.index[rows]), together[rows])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bits": 0}, "Expected `bits` in 1..8, got 0"),
        ({"median": 1}, "Expected `median` >= 2, got 1"),
        ({"false_alarms": 1.0}, r"Expected `false_alarms` in \[0, 1\), got 1.0"),
    ],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        FeatureSqueezing(**arguments)


def test_rates_are_of_all_images():
    rng = np.random.default_rng(0)
    distances = torch.from_numpy(rng.random(1_000))
    for rate in (0.01, 0.05, 0.3):
        assert float((distances > threshold_at(distances, rate)).double().mean()) == pytest.approx(rate)
