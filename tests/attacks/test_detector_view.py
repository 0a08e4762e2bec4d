"""Detectors in the attacker's way: margins, gradients, and adversarials that are found because they are undetected."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import AT_ONCE, DecisionBased, DetectorView, ScoreBased, WhiteBox, undetected
from advbench.attacks.apgd import APGD
from advbench.attacks.carlini_wagner import CarliniWagner
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.hop_skip_jump import HopSkipJump
from advbench.attacks.losses import margin
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted, cross_entropy

THREAT = ThreatModel("linf", 0.2)


class Sum(nn.Module):
    """Three classes of images of two pixels: logits (0, 30 a + 10 b - 1, -50) for pixels 0.5 + a and 0.5 + b."""

    def forward(self, x: Tensor) -> Tensor:
        total = (x.flatten(1) - 0.5) @ torch.tensor([30.0, 10.0]) - 1
        return torch.stack((torch.zeros_like(total), total, torch.full_like(total, -50.0)), dim=1)


class SecondPixel(nn.Module):
    """Rejects images whose second pixel is above 0.55."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, 1] - 0.55


def grey(n: int) -> Tensor:
    return torch.full((n, 1, 1, 2), 0.5)


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n))


def attacked(attack, detector, n=3, threat=THREAT, scale=5.0):
    y = torch.zeros(n, dtype=torch.int64)
    given = DetectorView(SecondPixel(), y, scale=scale) if detector else None
    with attack.knowledge(Sum(), rng(n), detector=given) as access:
        return attack(access, grey(n), Untargeted(y), threat, rng(n).fork("attack"))


def succeeded(x_adv):
    return (Sum()(x_adv).argmax(dim=1) != 0) & (SecondPixel()(x_adv) <= 0)


def test_the_margin_of_guarded_logits_is_the_smaller_of_both_margins():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(500, 6, generator=generator, dtype=torch.float64)
    score = torch.randn(500, generator=generator, dtype=torch.float64)
    y = torch.randint(6, (500,), generator=generator)
    found = undetected(logits, y, score)
    torch.testing.assert_close(margin(found, Untargeted(y)), torch.minimum(margin(logits, Untargeted(y)), -score))
    undetected_error = (logits.argmax(dim=1) != y) & (score < 0)
    assert torch.equal(found.argmax(dim=1) != y, undetected_error)
    others = torch.ones_like(logits, dtype=torch.bool).scatter(1, y.unsqueeze(1), False)
    assert torch.equal(found[others], logits[others])


@pytest.mark.parametrize("loss", [cross_entropy, margin])
def test_gradients_are_those_of_whichever_margin_stands_in_the_way(loss):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    watch = nn.Sequential(nn.Flatten(), nn.Linear(4, 1), nn.Flatten(0)).double()
    x, y = torch.rand(40, 1, 2, 2, dtype=torch.float64), torch.randint(3, (40,))
    with WhiteBox(model, rng(40), detector=DetectorView(watch, y, scale=2.0)) as access:
        found = access.loss_gradient(x, Untargeted(y), loss)
        logits, pull = access.pullback(x)
        rows = pull(torch.eye(3, dtype=torch.float64).unsqueeze(1).expand(3, 40, 3))
    classifier_holds = 0
    for i in range(len(x)):
        one = x[i : i + 1].clone().requires_grad_()
        z, score = model(one)[0], 2 * watch(one)[0]
        rest = [k for k in range(3) if k != int(y[i])]
        best = max(rest, key=lambda k: float(z[k].detach()))
        kept = bool(z[y[i]] >= z[best] + score)
        classifier_holds += kept
        true, others = (z[y[i]], z[rest]) if kept else (z[best].detach() + score, z[rest].detach())
        odds = true - (torch.logsumexp(others, 0) if loss is cross_entropy else others.max())
        value = -nn.functional.logsigmoid(odds) if loss is cross_entropy else -odds
        (gradient,) = torch.autograd.grad(value, one, retain_graph=True)
        torch.testing.assert_close(found.gradient[i : i + 1], gradient)
        if loss is margin:  # the constants cancel: it is the gradient of the very margin
            smaller = torch.minimum(z[best] - z[y[i]], -score)
            torch.testing.assert_close(gradient, torch.autograd.grad(smaller, one, retain_graph=True)[0])
        (row,) = torch.autograd.grad(true, one)
        torch.testing.assert_close(rows[int(y[i]), i : i + 1], row)
        torch.testing.assert_close(logits[i, y[i]], true.detach())
    assert 0 < classifier_holds < len(x)


@pytest.mark.parametrize(
    "attack",
    [
        PGD(steps=40, random_start=False, stop="never"),
        PGD(steps=40),
        PGD(steps=40, loss="margin"),
        APGD(steps=40, loss="dlr"),
        HopSkipJump(queries=600),
    ],
    ids=lambda attack: type(attack).__name__ + str(getattr(attack, "loss", "")),
)
def test_an_attack_on_the_guarded_model_finds_what_the_detector_accepts(attack):
    assert succeeded(attacked(attack, detector=True)).all()


@pytest.mark.parametrize("attack", [DeepFool(), CarliniWagner(steps=100)], ids=lambda attack: type(attack).__name__)
def test_minimal_norm_attacks_reach_accepted_errors(attack):
    x_adv = attacked(attack, detector=True, threat=ThreatModel("l2", None))
    assert succeeded(x_adv).all()


def test_plain_pgd_walks_into_the_detector():
    x_adv = attacked(PGD(steps=40, random_start=False, stop="never"), detector=False)
    assert (Sum()(x_adv).argmax(dim=1) == 1).all()
    assert (SecondPixel()(x_adv) > 0).all()


def test_a_detector_that_rejects_everything_cannot_be_passed():
    class Always(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return 1 + 0 * x.flatten(1).sum(dim=1)

    y = torch.zeros(4, dtype=torch.int64)
    far = torch.ones(4, 1, 1, 2)
    for kind in (WhiteBox, ScoreBased):
        with kind(Sum(), rng(4), detector=DetectorView(Always(), y)) as access:
            assert (access.logits(far).argmax(dim=1) == 0).all()
    with DecisionBased(Sum(), rng(4), detector=DetectorView(Always(), y)) as access:
        assert (access.labels(far) == 0).all()
    with WhiteBox(Sum(), rng(4), detector=DetectorView(Always(), y)) as access:
        assert not Targeted(y, y + 1).achieved(access.logits(far)).any()


def test_the_guard_follows_selection_and_averaging():
    y = torch.tensor([0, 1, 0, 1])
    x = torch.tensor([0.5, 0.9]).expand(4, 1, 1, 2)  # the model says class 1, the detector rejects
    access = WhiteBox(Sum(), rng(4), detector=DetectorView(SecondPixel(), y))
    assert access.logits(x).argmax(dim=1).tolist() == [0, 1, 0, 1]
    some = access.select(torch.tensor([1, 2])).averaging(3)
    assert some.logits(x[:2]).argmax(dim=1).tolist() == [1, 0]
    assert access.select(torch.tensor([False, False, True, True])).logits(x[:2]).argmax(dim=1).tolist() == [0, 1]


def test_the_detector_is_frozen_with_the_model_and_comes_back():
    watch = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(2, 1), nn.Flatten(0))
    with WhiteBox(Sum(), rng(2), detector=DetectorView(watch, torch.zeros(2, dtype=torch.int64))):
        assert not watch[1].training
        assert not watch[2].weight.requires_grad
    assert watch[1].training
    assert watch[2].weight.requires_grad


class NoisyScore(nn.Module):
    """A score that is one normal number per draw."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        return rng.normal(()) + 0 * x.flatten(1).sum(dim=1)


def test_a_stochastic_detector_makes_a_deterministic_model_random():
    y = torch.zeros(2000, dtype=torch.int64)
    access = WhiteBox(Sum(), rng(2000), detector=DetectorView(NoisyScore(), y, stochastic=True))
    assert access.stochastic
    assert not torch.equal(access.logits(torch.ones(2000, 1, 1, 2)), access.logits(torch.ones(2000, 1, 1, 2)))
    errors = (access.logits(torch.ones(2000, 1, 1, 2)).argmax(dim=1) != 0).double().mean()
    assert abs(float(errors) - 0.5) < 0.05


def test_scores_of_another_shape_are_refused():
    class Wide(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)

    with (
        WhiteBox(Sum(), rng(2), detector=DetectorView(Wide(), torch.zeros(2, dtype=torch.int64))) as access,
        pytest.raises(ValueError, match=r"Expected a detector's scores of shape \(2,\), got \(2, 2\)"),
    ):
        access.logits(grey(2))


class NoisySlope(nn.Module):
    """Logits (s (a + b), 0) with a normal slope s per draw."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        self.most = max(self.most, len(x))
        total = (3 + rng.normal((), x.dtype)) * x.flatten(1).sum(dim=1)
        return torch.stack((total, torch.zeros_like(total)), dim=1)


@pytest.mark.parametrize("draws", [1, AT_ONCE, 2 * AT_ONCE + 3])
def test_many_draws_pass_in_portions_and_mean_the_same(draws):
    x, y = torch.rand(4, 1, 1, 2, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    model = NoisySlope()
    with WhiteBox(model, rng(4), stochastic=True, draws=draws) as access:
        found = access.loss_gradient(x, Untargeted(y), margin)
        logits = access.logits(x)
    assert model.most <= 4 * AT_ONCE
    assert access.ledger.forwards.tolist() == [2 * draws] * 4
    assert access.ledger.backwards.tolist() == [draws] * 4
    slopes = [3 + rng(4).at(draw).normal((), torch.float64) for draw in range(2 * draws)]
    mean = torch.stack(slopes[:draws]).mean(dim=0)
    torch.testing.assert_close(found.gradient, -mean.view(4, 1, 1, 1).expand(4, 1, 1, 2))
    torch.testing.assert_close(found.loss, -mean * x.flatten(1).sum(dim=1))
    torch.testing.assert_close(found.logits[:, 0], mean * x.flatten(1).sum(dim=1))
    torch.testing.assert_close(logits[:, 0], torch.stack(slopes[draws:]).mean(dim=0) * x.flatten(1).sum(dim=1))
