"""Feature squeezing: its distance by hand, its threshold on clean validation images, and what the attacker evades."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import nn

from advbench.attacks.access import DetectorView, WhiteBox
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.defenses.inference.bit_depth import rounded
from advbench.defenses.inference.feature_squeezing import FeatureSqueezing, SqueezedDistance, steepened, threshold_at
from advbench.defenses.inference.non_local_means import NonLocal

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


def test_non_local_means_is_a_third_squeezer(lab):
    base, split = lab.fitted("none"), lab.data.validation
    two, three = (lab.fitted(f"feature-squeezing(bits=5,false_alarms=0.0{more})") for more in ("", ",search=5,strength=60"))
    with torch.no_grad():
        pair = (base.model(each).softmax(dim=1) for each in (split.x, NonLocal(5, 3, 60.0)(split.x)))
        distance = torch.sub(*pair).abs().sum(dim=1)
    found, before = (score(each, split.x, split.index) + each.facts["threshold"] for each in (three, two))
    torch.testing.assert_close(found.detach(), torch.maximum(before, distance).detach())
    assert (distance > before).any()


def test_the_attacker_evades_the_detector_with_a_gradient_through_every_squeezer(lab):
    defended, split = lab.fitted(SPEC), lab.data.validation
    assert list(defended.surrogates) == ["faithful", "follow", "joint", "bpda", "base"]
    assert defended.surrogates["faithful"].detector is defended.detector
    assert not defended.surrogates["base"].evading
    expected = score(defended, split.x, split.index)
    for name in ("faithful", "follow", "joint", "bpda"):
        x, detector = split.x.clone().requires_grad_(), defended.surrogates[name].detector
        found = detector.model(x)
        (gradient,) = torch.autograd.grad(found.sum(), x)
        assert torch.equal(found, expected)  # whatever the slopes
        assert gradient.isfinite().all()
        assert gradient.abs().amax(dim=(1, 2, 3)).gt(0).all()


@pytest.mark.parametrize("rounding", [None, nn.Identity()])
def test_the_gradient_through_the_rounding_is_that_of_a_substitute(lab, rounding):
    base, split = lab.fitted("none"), lab.data.validation
    squeezer = FeatureSqueezing(bits=1).squeezers(rounding)[0]
    x, at = split.x.clone().requires_grad_(), rounded(split.x, 1).requires_grad_()
    (found,) = torch.autograd.grad(base.model(squeezer(x))[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(base.model(at)[:, 0].sum(), at)
    slope = 3 * (split.x - split.x.round()) ** 2 if rounding is None else 1.0
    torch.testing.assert_close(found, expected * slope)


class Confident(nn.Module):
    """Two classes by the mean of the pixels, above or below `at`."""

    def __init__(self, sharpness: float, at: float = 0.5) -> None:
        super().__init__()
        self.sharpness, self.at = sharpness, at

    def forward(self, x):
        z = self.sharpness * (x.mean(dim=(1, 2, 3)) - self.at)
        return torch.stack((z, -z), dim=1)


class Darker(nn.Module):
    """Half the light."""

    def forward(self, x):
        return x / 2


def watching(sharpness: float, held: bool = False) -> SqueezedDistance:
    return SqueezedDistance(Confident(sharpness), [Darker()], threshold=0.5, stochastic=False, held=held).double()


def test_a_saturated_detector_keeps_a_gradient():
    """Bright image, dark copy, both confident: the distance is 2 to the last digit, and flat."""
    x = torch.full((1, 1, 4, 4), 0.8).requires_grad_()
    detector = SqueezedDistance(Confident(1_000.0), [Darker()], threshold=0.5, stochastic=False)
    probabilities, squeezed = (detector.base(each).softmax(dim=1) for each in (x, x / 2))
    plain = (probabilities - squeezed).abs().sum(dim=1) - 0.5
    (flat,) = torch.autograd.grad(plain.sum(), x)
    found = detector(x)
    (gradient,) = torch.autograd.grad(found.sum(), x)
    assert flat.abs().amax() == 0
    assert torch.equal(found, plain)
    assert plain.item() == 1.5
    # What both have in common is the copy's share of the bright class, exp(-2 * 1000 * 0.1): it grows with the copy's light.
    torch.testing.assert_close(gradient, torch.full_like(x, -2 * 1_000.0 / 2 / 16))


@pytest.mark.parametrize("sharpness", [1.0, 8.0, 20.0])
def test_the_gradient_points_as_that_of_the_distance_does(sharpness):
    x = torch.linspace(0.2, 0.9, 30, dtype=torch.float64)[:, None, None, None].expand(-1, 1, 2, 2).clone().requires_grad_()
    detector = watching(sharpness)
    pair = [detector.base(each).softmax(dim=1) for each in (x, x / 2)]
    distance = torch.sub(*pair).abs().sum(dim=1)
    (plain,) = torch.autograd.grad(distance.sum(), x)
    (found,) = torch.autograd.grad(detector(x).sum(), x)
    factor = 1 / (2 - distance.clamp_min(1)).view(-1, 1, 1, 1)
    torch.testing.assert_close(found, factor * plain)


def test_steepened_distances_are_smooth_and_in_order():
    other = torch.tensor([[0.5, 0.3, 0.2]], dtype=torch.float64).log()
    logits = torch.randn(500, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 6
    own = logits.log_softmax(dim=1)
    distance = (own.exp() - other.exp()).abs().sum(dim=1)
    order = distance.argsort()
    values = steepened(own, other.expand(500, 3))[order]
    assert (values.diff() >= -1e-12).all()
    torch.testing.assert_close(values[distance[order] <= 1], distance[order][distance[order] <= 1])
    assert torch.autograd.gradcheck(
        lambda z: steepened(z.log_softmax(dim=1), other.expand(20, 3)), logits[:20].requires_grad_()
    )


def test_held_slopes_move_the_copies_alone():
    x = torch.full((1, 1, 2, 2), 0.8, dtype=torch.float64).requires_grad_()
    detector = watching(6.0, held=True)
    own = detector.base(x.detach()).log_softmax(dim=1)
    (expected,) = torch.autograd.grad(steepened(own, detector.base(x / 2).log_softmax(dim=1)).sum(), x)
    (found,) = torch.autograd.grad(detector(x).sum(), x)
    torch.testing.assert_close(found, expected)
    assert torch.equal(detector(x), watching(6.0)(x))


def test_joint_logits_are_the_mean_over_the_image_and_its_squeezed_versions(lab):
    base, joint, x = lab.fitted("none"), lab.fitted(SPEC).surrogates["joint"], lab.data.validation.x
    smooth = torch.from_numpy(ndimage.median_filter(x.numpy(), size=(1, 1, 3, 3), mode="reflect"))
    expected = (base.model(x) + base.model(rounded(x, 1)) + base.model(smooth)) / 3
    torch.testing.assert_close(joint.model(x), expected)
    assert joint.detector is lab.fitted(SPEC).detector


class Plain(SqueezedDistance):
    """The same scores with their own slopes."""

    def forward(self, x, rng=None):
        own, squeezed = (self.base(each).softmax(dim=1) for each in (x, self.squeezers[0](x)))
        return (own - squeezed).abs().sum(dim=1) - self.threshold


def test_a_saturated_detector_no_longer_stops_an_attack():
    """A dark image that looks bright, and whose darker copy does not: lighter by 0.1, the copy looks bright too."""
    x, y, index = torch.full((1, 1, 4, 4), 0.8), torch.tensor([1]), torch.tensor([0])

    def attacked(kind: type[SqueezedDistance]) -> torch.Tensor:
        detector = kind(Confident(10_000.0, at=0.45), [Darker()], threshold=0.5, stochastic=False)
        assert detector(x).item() == 1.5
        with WhiteBox(detector.base, ExampleRNG.make(0, "oracle", index), detector=DetectorView(detector, y)) as access:
            attack = PGD(steps=20, step_size=0.1, random_start=False)
            x_adv = attack(access, x, Untargeted(y), ThreatModel("linf", 0.15), ExampleRNG.make(0, "attack", index))
        assert detector.base(x_adv).argmax() == 0
        return x_adv if detector(x_adv) <= 0 else x

    assert torch.equal(attacked(Plain), x)
    evaded = attacked(SqueezedDistance)
    assert (evaded > x).all()
    assert torch.equal(evaded, attacked(SqueezedDistance))


@pytest.mark.parametrize("base", ["bit-depth", "input-noise(passes=2)", "gaussian-blur", "pgd-linf", SPEC])
def test_watches_any_defense(lab, base):
    behind, defended, split = lab.fitted(base), lab.fitted(f"feature-squeezing(base={base!r})"), lab.data.validation
    assert defended.stochastic == defended.detector.stochastic == behind.stochastic
    assert len(defended.surrogates) == len(behind.surrogates) + 4
    assert score(defended, split.x, split.index).shape == (len(split),)
    if behind.detector is not None:  # either one rejects
        assert (score(defended, split.x, split.index) >= score(behind, split.x, split.index)).all()
    for surrogate in defended.surrogates.values():
        if surrogate.evading:
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
        ({"search": 4}, "Expected `search` odd and >= 3, got 4"),
        ({"strength": -1.0}, "Expected `strength` > 0, got -1.0"),
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
