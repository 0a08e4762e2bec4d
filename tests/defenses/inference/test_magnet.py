"""MagNet: the detector's error and threshold, and how it stands beside the classifier."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import DetectorView, WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted
from advbench.defenses.defended import Defended
from advbench.defenses.inference.autoencoder_pool import Chosen, DAEPool, Pool, diverse
from advbench.defenses.inference.composition import Approximated, purified
from advbench.defenses.inference.denoiser import DAE
from advbench.defenses.inference.magnet import Divergence, Judge, MagNet, ReconstructionError, threshold
from advbench.registry import registry
from advbench.zoo.training import Budget, Step

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


def streams(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "oracle", torch.arange(n))


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(24, 6)).double()


def jensen_shannon(p: list[float], q: list[float]) -> float:
    """The definition, term by term."""
    middle = [(a + b) / 2 for a, b in zip(p, q, strict=True)]
    kl = lambda a, b: sum(x * math.log(x / y) for x, y in zip(a, b, strict=True))  # noqa: E731
    return (kl(p, middle) + kl(q, middle)) / 2


@pytest.mark.parametrize("temperature", [1.0, 10.0, 40.0])
def test_the_divergence_is_jensen_and_shannons_of_the_softened_answers(temperature):
    x = torch.rand(5, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    model = net()
    judge = Divergence(model, Darker(), temperature, stochastic=False).double()
    judge.threshold.fill_(0.003)
    with torch.no_grad():
        answers = [(model(images) / temperature).softmax(dim=1).tolist() for images in (x, 0.8 * x)]
        found = judge(x).tolist()
    assert found == pytest.approx([jensen_shannon(*pair) - 0.003 for pair in zip(*answers, strict=True)], abs=1e-12)


def test_answers_that_agree_have_no_divergence_and_certain_opposites_have_all():
    class Opposed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            sure = 1e4 * (x.flatten(1).mean(dim=1, keepdim=True) - 0.9).sign()
            return torch.cat([sure, -sure], dim=1)

    x = torch.ones(2, 1, 2, 2)
    assert Divergence(Opposed(), nn.Identity(), 1.0, stochastic=False)(x).tolist() == [0.0, 0.0]
    assert Divergence(Opposed(), Darker(), 1.0, stochastic=False)(x).tolist() == pytest.approx([math.log(2)] * 2)


def test_each_detector_has_its_own_threshold_and_any_of_them_rejects(lab):
    fitted, x = lab.fitted("magnet(detector=[1.0, 2.0], temperatures=[10.0, 40.0], fpr=0.25)"), lab.data.validation.x
    judges = [part for part in fitted.detector.model.modules() if isinstance(part, Judge)]
    assert [judge.label for judge in judges] == ["error_1", "error_2", "divergence_10", "divergence_40"]
    with torch.no_grad():
        over = torch.stack([judge(x) > 0 for judge in judges])
        rejected = fitted.detector.model(x) > 0
    assert over.sum(dim=1).tolist() == [3] * 4  # a quarter of twelve
    assert torch.equal(rejected, over.any(dim=0))
    assert fitted.facts["false_alarms"] == pytest.approx(float(rejected.double().mean()))
    assert fitted.facts["threshold_divergence_40_1"] == pytest.approx(float(judges[3].threshold))


def test_an_error_that_any_detector_sees_is_no_success(lab):
    """As the project counts: the margin of the detected is that of the detector, with its sign."""
    fitted, split = lab.fitted("magnet(temperatures=[10.0], fpr=0.25)"), lab.data.validation
    x, view = 0.97 * split.x, DetectorView(fitted.detector.model, split.y)  # none that a threshold is the score of
    with WhiteBox(fitted.model, streams(len(split)), detector=view) as access:
        said = access.logits(x)
        bare = access.model(x)
        rejected = fitted.detector.model(x) > 0
    wrong = bare.argmax(dim=1) != split.y
    assert (wrong & rejected).any()
    assert (wrong & ~rejected).any()
    assert torch.equal(Untargeted(split.y).achieved(said), wrong & ~rejected)


POOL = "magnet(temperatures=[10.0], autoencoders=3, fpr=0.25)"


def test_one_autoencoder_of_several_is_chosen_for_each_image_draw_and_device(lab):
    fitted, split = lab.fitted(POOL), lab.data.validation
    pool, base = lab.fitted("dae-pool(count=3)").model, lab.fitted("none").model
    assert fitted.stochastic
    assert fitted.detector.stochastic
    rng = streams(len(split))
    choice = fitted.model.purifier.choice(rng.fork("purifier"))
    with torch.no_grad():
        reformed = pool(split.x)[choice, torch.arange(len(split))]
        torch.testing.assert_close(fitted.model(split.x, rng), base(reformed))
    many = ExampleRNG.make(0, "oracle", torch.arange(3000))
    devices = [part for part in fitted.modules().modules() if isinstance(part, Chosen)]
    chosen = {device.device: device.choice(many) for device in devices}
    assert set(chosen) == {"reformer", "error_2", "divergence_10"}
    for one in chosen.values():
        assert (one.bincount() / 3000).tolist() == pytest.approx([1 / 3] * 3, abs=0.04)
    agree = (chosen["error_2"] == chosen["divergence_10"]).double().mean()
    assert float(agree) == pytest.approx(1 / 3, abs=0.04)
    assert not torch.equal(chosen["reformer"], fitted.model.purifier.choice(many.at(1)))


def test_the_detector_of_an_autoencoder_has_its_threshold(lab):
    fitted, x = lab.fitted(POOL), lab.data.validation.x
    judges = [part for part in fitted.detector.model.modules() if isinstance(part, Judge)]
    assert len(judges) == 6
    with torch.no_grad():
        assert [int((judge(x) > 0).sum()) for judge in judges] == [3] * 6
    assert len({float(judge.threshold) for judge in judges}) == 6


def test_a_random_choice_has_the_mean_gradient_of_its_members():
    """Expectation over transformation: the mean over draws comes to the mean over autoencoders."""
    members = [nn.Sequential(nn.Flatten(), nn.Linear(4, 3)).double() for _ in range(3)]
    x, goal = torch.full((1, 1, 2, 2), 0.5, dtype=torch.float64), Untargeted(torch.tensor([0]))
    first = lambda logits, _: logits[:, 1]  # noqa: E731
    with WhiteBox(Chosen(members, "reformer"), streams(1), stochastic=True, draws=4096) as access:
        found = access.loss_gradient(x, goal, first).gradient.flatten()
    wanted = torch.stack([member[1].weight[1] for member in members]).mean(dim=0)
    torch.testing.assert_close(found, wanted, atol=0.02, rtol=0)


def test_the_pool_is_rewarded_for_what_its_members_differ_by():
    data = torch.rand(4, 1, 2, 3, dtype=torch.float64)
    pool = Pool([nn.Identity(), Darker(), Darker()])
    step = Step(0, 0, 0, torch.arange(4))
    terms = diverse(0.0, 0.5)(pool, data, torch.zeros(4), step)
    squared = data.square().flatten(1).sum(dim=1).mean()
    mean = 2.6 / 3
    apart = (1 - mean) ** 2 + 2 * (0.8 - mean) ** 2
    torch.testing.assert_close(terms["reconstruction"], 2 * 0.04 * squared)
    torch.testing.assert_close(terms["diversity"], -0.5 * apart * squared)


def test_trained_to_differ_they_differ_more():
    data, budget = registry.load_dataset("digits"), Budget(epochs=1, train_examples=256)

    def spread(diversity: float) -> float:
        pool = DAEPool(count=2, diversity=diversity).fit(nn.Identity, data, inputs={}, seed=0, device=CPU, budget=budget)
        with torch.no_grad():
            made = pool.model(data.validation.x)
        return float((made - made.mean(dim=0)).square().sum(dim=(0, 2, 3, 4)).mean())

    assert spread(0.8) > 1.1 * spread(0.0)


def test_an_attacker_follows_the_divergence_of_a_base_whose_own_slope_is_none():
    """Behind a rounding the classifier has no slope, so that the detector asks the base's first surrogate in its place."""
    model = net()

    class Round(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return (4 * x).round() / 4

    base = purified(Defended(model), Round(), stochastic=False, differentiable=False)
    denoiser = Defended(Darker())
    defended = MagNet(detector=None, temperatures=(10.0,)).wrap({"base": base, "denoiser": denoiser})
    x = torch.rand(3, 1, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    followed = defended.surrogates["faithful"].detector.model
    assert isinstance(followed.classifier.purifier, Approximated)
    torch.testing.assert_close(followed.double()(x), defended.detector.model.double()(x))
    assert torch.autograd.grad(followed(x).sum(), x)[0].abs().sum() > 0


@pytest.mark.parametrize(
    "arguments",
    [
        {"detector": 0.5},
        {"detector": math.inf},
        {"detector": (2.0, 0.5)},
        {"fpr": 1.0},
        {"fpr": -0.1},
        {"temperatures": (0.0,)},
        {"temperatures": (10.0, math.nan)},
        {"diversity": 1.0},
    ],
)
def test_refuses_numbers_out_of_range(arguments):
    with pytest.raises(ValueError, match="Expected `"):
        MagNet(**arguments)


def test_refuses_no_autoencoder():
    with pytest.raises(ValueError, match="Expected at least one autoencoder, got 0"):
        MagNet(autoencoders=0)
