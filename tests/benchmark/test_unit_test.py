"""The attack unit test: planted adversarials exist, good attacks find them, bad ones and masked gradients do not pass."""

from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.square import Square
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Defended, Detector, Surrogate
from advbench.defenses.inference.noise import Noisy
from advbench.tasks import planting
from advbench.tasks.planting import plant
from advbench.tasks.probing import Probe, unit_test
from advbench.tasks.readouts import Binary, Readouts, last_linear, separate
from advbench.zoo.data import Split

CPU = torch.device("cpu")
LINF = ThreatModel("linf", 0.1)
THREATS = (LINF, ThreatModel("l2", 1.0), ThreatModel("l1", 6.0))


class Linear(nn.Module):
    """A linear classifier of 64 pixels into 4 classes."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Linear(64, 4)

    def forward(self, x):
        return self.layer(x.flatten(1))


class Net(nn.Module):
    """A small convolutional network whose logits are multiplied by `scale`."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.Softplus(), nn.Flatten(), nn.Linear(512, 64), nn.Softplus()
        )
        self.head, self.scale = nn.Linear(64, 4), scale

    def forward(self, x):
        return self.scale * self.head(self.body(x))


class Quantised(nn.Module):
    """A network behind pixels rounded to a few levels: a gradient that is zero everywhere."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return self.net((16 * x).round() / 16 + 0 * x)


class Straight(Quantised):
    """The same with the identity's slope in place of the rounding's: BPDA."""

    def forward(self, x):
        return self.net(x + ((16 * x).round() / 16 - x).detach())


class Downhill(Quantised):
    """The same logits as the network's, with the gradient's sign turned round."""

    def forward(self, x):
        return self.net(x.detach() + (x.detach() - x))


class Detached(Quantised):
    """The same logits without any gradient."""

    def forward(self, x):
        return self.net(x.detach())


class Averaged(nn.Module):
    """A network's mean over two copies of the batch: one after the other, or image by image."""

    def __init__(self, net, interleaved):
        super().__init__()
        self.net, self.interleaved = net, interleaved

    def forward(self, x):
        shade = torch.tensor([1.0, 0.9])
        if self.interleaved:
            copies = x.repeat_interleave(2, dim=0) * shade.repeat(len(x)).view(-1, 1, 1, 1)
            return self.net(copies).view(len(x), 2, -1).mean(dim=1)
        copies = x.repeat(2, 1, 1, 1) * shade.repeat_interleave(len(x)).view(-1, 1, 1, 1)
        return self.net(copies).view(2, len(x), -1).mean(dim=0)


class Ensemble(nn.Module):
    """The mean of two networks."""

    def __init__(self):
        super().__init__()
        self.one, self.other = Net(), Net(0.5)

    def forward(self, x):
        return self.one(x) + self.other(x)


class Roughness(nn.Module):
    """Rejects images whose neighbouring pixels differ, in the mean, by more than a share above what the clean image has."""

    def __init__(self, most):
        super().__init__()
        self.most = most

    def forward(self, x):
        return (x[..., 1:] - x[..., :-1]).abs().flatten(1).mean(dim=1) - self.most


def images(n=24):
    """Smooth grey images, far from 0 and 1."""
    generator = torch.Generator().manual_seed(1)
    slope = torch.linspace(0, 0.3, 8).view(1, 1, 1, 8) * torch.rand(n, 1, 1, 1, generator=generator)
    x = 0.2 + 0.3 * torch.rand(n, 1, 1, 1, generator=generator) + slope.expand(n, 1, 8, 8)
    return Split(x.contiguous(), torch.arange(n) % 4, 5 + 2 * torch.arange(n))


def ran(defended, attack, threat=LINF, *, surrogate=None, points=20, seed=0, batch=32, draws=4, split=None):
    surrogate = surrogate or next(iter(defended.surrogates.values()))
    given = replace(threat, epsilon=None) if attack.minimal_norm else threat
    return unit_test(
        defended,
        {"it": Probe(attack, surrogate, given, draws=draws)},
        images() if split is None else split,
        threat,
        points=points,
        seed=seed,
        draws=6,
        batch=batch,
        device=CPU,
    )


def share(found):
    assert len(found.index) == found.images
    return float(found.found.double().mean())


# --- what is planted


def distance(delta, norm):
    flat = delta.reshape(len(delta), -1)
    if norm == "linf":
        return np.abs(flat).max(axis=1)
    return np.abs(flat).sum(axis=1) if norm == "l1" else np.sqrt((flat**2).sum(axis=1))


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
def test_planted_images_lie_in_the_ball_and_fool_a_linear_model_by_hand(threat):
    split, model = images(), Linear()
    found = plant(Defended(model), split, threat, seed=0, draws=1, batch=7, device=CPU)
    assert found.layer is model.layer
    assert not found.unbuilt
    assert torch.equal(found.split.index, split.index)
    x, planted = split.x.double().numpy(), found.planted.double().numpy()
    reached = distance(planted - x, threat.norm)
    assert (reached <= threat.epsilon * (1 + 1e-5)).all()
    assert (reached > 0.99 * threat.epsilon).all()
    assert planted.min() >= 0
    assert planted.max() <= 1
    weight, bias, offset = (one.numpy() for one in (found.readouts.weight, found.readouts.bias, found.readouts.offset))

    def lead(points):
        return np.einsum("nd,nd->n", points.reshape(len(points), -1), weight) + bias + offset

    assert (lead(planted) > 0).all()
    assert (lead(x) < 0).all()
    rng = np.random.default_rng(0)
    for _ in range(50):  # no accident: a tenth of the radius around the image keeps its label
        near = rng.uniform(-1, 1, x.shape)
        near *= 0.1 * threat.epsilon / distance(near, threat.norm).reshape(-1, 1, 1, 1)
        assert (lead(x + near) < 0).all()


def test_the_logits_are_as_large_as_the_models_own():
    split = images()
    for scale in (1.0, 1000.0):
        net = Net(scale)
        found = plant(Defended(net), split, LINF, seed=0, draws=1, batch=32, device=CPU)
        top = net(split.x).topk(2, dim=1).values
        binary = found.defended(Defended(net)).model
        two = binary(split.x, ExampleRNG.make(0, "test", split.index))
        torch.testing.assert_close(two[:, 0] - two[:, 1], top[:, 0] - top[:, 1], rtol=0.02, atol=1e-3)


@pytest.mark.parametrize("d", [5, 80])
def test_the_readout_is_fishers_discriminant(d):
    generator = torch.Generator().manual_seed(d)
    inner = torch.randn(3, 20, d, generator=generator, dtype=torch.float64)
    beyond = 2 + torch.randn(3, d, generator=generator, dtype=torch.float64)
    found = separate(inner, beyond, ridge=0.1)
    for n in range(3):
        points = inner[n].numpy()
        covariance = np.cov(points.T, bias=True)
        expected = np.linalg.solve(
            covariance + 0.1 * np.trace(covariance) / d * np.eye(d), beyond[n].numpy() - points.mean(axis=0)
        )
        np.testing.assert_allclose(found.weight[n].numpy(), expected, rtol=1e-8)
        assert float(found.highest[n]) == pytest.approx((points @ expected).max())
        assert float(found.beyond[n]) == pytest.approx(float(beyond[n].numpy() @ expected))
        assert float(found.clean[n]) == pytest.approx(float(points[0] @ expected))


def test_features_that_never_change_separate_nothing():
    class Blind(Linear):
        def forward(self, x):
            return self.layer(0 * x.flatten(1))

    found = plant(Defended(Blind()), images(), LINF, seed=0, draws=1, batch=32, device=CPU)
    assert len(found.split) == 0
    assert found.unbuilt == {planting.NOT_SEPARATED: 24}


# --- good attacks pass


@pytest.mark.parametrize("threat", THREATS, ids=lambda threat: threat.norm)
@pytest.mark.parametrize("model", [Linear, Net])
def test_pgd_finds_what_is_planted_in_an_undefended_model_and_random_points_do_not(model, threat):
    found = ran(Defended(model()), PGD(steps=40), threat)
    assert share(found) == 1.0
    assert float(found.control.double().mean()) <= 0.1
    assert found.points == 20
    assert found.probes == {"it": 24}
    assert "before the last linear layer" in found.features


def test_logits_serve_where_the_last_layer_is_no_linear_one():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 20, 3, stride=2), nn.Tanh(), nn.Conv2d(20, 10, 3), nn.Flatten())
    found = ran(Defended(model), PGD(steps=40))
    assert found.features == "10 logits"
    assert len(found.index) >= 20
    assert found.found.all()


# --- bad attacks and masked gradients fail


@pytest.mark.parametrize("attack", [PGD(steps=1, step_size=0.01, random_start=False), PGD(steps=40, step_size=1e-4)])
def test_an_attack_that_hardly_moves_fails(attack):
    assert share(ran(Defended(Net()), attack)) < 0.1


def test_zero_gradients_fail_and_a_surrogate_or_scores_alone_pass():
    net = Net()
    defended = Defended(Quantised(net), surrogates={"faithful": Surrogate(Quantised(net)), "bpda": Surrogate(Straight(net))})
    assert share(ran(defended, PGD(steps=40))) < 0.5
    assert share(ran(defended, PGD(steps=40, stop="never"), surrogate=defended.surrogates["bpda"])) >= 0.95
    assert share(ran(defended, Square(queries=2000))) >= 0.95


def test_gradients_that_point_downhill_fail_and_scores_alone_pass():
    defended = Defended(Downhill(Net()))
    assert share(ran(defended, PGD(steps=40))) < 0.5
    assert share(ran(defended, Square(queries=2000))) >= 0.95


def test_saturated_logits_fail_with_cross_entropy_and_pass_with_the_margin():
    defended = Defended(Net(1e5))
    assert share(ran(defended, PGD(steps=40, loss="cross-entropy"))) < 0.5
    assert share(ran(defended, PGD(steps=40, loss="margin"))) == 1.0


def test_a_surrogate_without_a_gradient_is_named_and_finds_nothing():
    net = Net()
    defended = Defended(net, surrogates={"cut": Surrogate(Detached(net)), "faithful": Surrogate(net)})
    found = unit_test(
        defended,
        {name: Probe(PGD(steps=40), one, LINF) for name, one in defended.surrogates.items()},
        images(),
        LINF,
        points=4,
        seed=0,
        draws=1,
        batch=32,
        device=CPU,
    )
    assert found.probes == {"cut": None, "faithful": 24}
    assert found.found.all()


@dataclass(frozen=True)
class Outside:
    """Claims the planted direction at three times the radius."""

    norms: ClassVar = frozenset({"linf"})
    minimal_norm: ClassVar = True
    knowledge: ClassVar = WhiteBox

    def __call__(self, access, x, goal, threat, rng):
        return PGD(steps=20, stop="never")(access, x, goal, ThreatModel("linf", 0.3), rng)


def test_a_minimal_norm_attack_must_stay_within_the_radius():
    found = ran(Defended(Net()), Outside())
    assert found.probes["it"] == 0
    assert not found.found.any()


# --- random models


def noisy():
    return Defended(Noisy(Net(), sigma=0.05, passes=2, stochastic=False), stochastic=True)


def test_a_random_models_share_repeats_by_its_seed_whatever_the_batch():
    attack, few, threat = PGD(steps=5, step_size=0.4), images(12), ThreatModel("linf", 0.2)
    one, again = (ran(noisy(), attack, threat, split=few, points=4, draws=2) for _ in range(2))
    assert len(one.index) >= 10
    assert float(one.found.double().mean()) >= 0.9
    assert torch.equal(one.index, again.index)
    assert torch.equal(one.found, again.found)
    assert torch.equal(one.control, again.control)
    assert one.probes == again.probes
    how = ((0, 32), (0, 5), (1, 32))
    planted = [plant(noisy(), few, threat, seed=seed, draws=3, batch=batch, device=CPU) for seed, batch in how]
    assert torch.equal(planted[0].planted, planted[1].planted)
    torch.testing.assert_close(planted[0].readouts.weight, planted[1].readouts.weight)
    assert not torch.equal(planted[0].planted[:5], planted[2].planted[:5])


def test_a_planted_image_holds_on_draws_that_nothing_was_fitted_on():
    threat = ThreatModel("linf", 0.2)
    defended = noisy()
    found = plant(defended, images(), threat, seed=0, draws=6, batch=32, device=CPU)
    model = found.defended(defended).model
    rng = ExampleRNG.make(123, "another", found.split.index)
    with torch.no_grad():
        leads = [
            (model(x, rng.at(draw)) @ torch.tensor([-1.0, 1.0]))
            for x in (found.planted, found.split.x)
            for draw in range(30)
        ]
    planted, clean = torch.stack(leads[:30]).mean(dim=0), torch.stack(leads[30:]).mean(dim=0)
    assert float((planted > 0).double().mean()) >= 0.95
    assert float((clean < 0).double().mean()) >= 0.95


def test_noise_that_drowns_everything_is_told_and_not_dropped():
    drowned = Defended(Noisy(Net(), sigma=5.0, passes=1, stochastic=False), stochastic=True)
    found = plant(drowned, images(), ThreatModel("linf", 0.01), seed=0, draws=3, batch=32, device=CPU)
    assert len(found.split) + sum(found.unbuilt.values()) == 24
    assert sum(found.unbuilt.values()) > 0


# --- detectors


def test_a_detector_that_rejects_all_leaves_nothing_to_test():
    found = ran(Defended(Net(), detector=Detector(Roughness(-1.0))), PGD(steps=3))
    assert len(found.index) == 0
    assert found.unbuilt == {planting.NOT_ALLOWED: 24}
    assert len(found.found) == 0


def test_planted_images_are_accepted_and_attacks_must_evade_the_detector():
    detector = Detector(Roughness(0.08))
    defended = Defended(Net(), detector=detector)
    found = plant(defended, images(), LINF, seed=0, draws=1, batch=32, device=CPU)
    assert len(found.split) >= 20
    assert (detector.model(found.planted) <= 0).all()
    guarded = ran(defended, PGD(steps=100, step_size=0.05))
    alone = ran(defended, PGD(steps=100), surrogate=Surrogate(defended.model, evading=False))
    assert float(guarded.found.double().mean()) >= 0.9
    assert float(alone.found.double().mean()) < 0.5  # misclassified, and rejected


# --- where the readouts stand


def probe(model, stochastic=False):
    split = images(4)
    return last_linear([(model, stochastic)], split.x, ExampleRNG.make(0, "probe", split.index))


def test_the_layer_is_found_where_it_alone_decides():
    net = Net(7.0)
    assert probe(net) is net.head
    assert probe(Averaged(net, interleaved=False)) is net.head
    assert probe(Noisy(net, sigma=0.1, passes=3, stochastic=False), True) is net.head
    assert probe(Averaged(net, interleaved=True)) is None
    assert probe(Ensemble()) is None
    assert (
        probe(nn.Sequential(net, nn.Linear(4, 4), nn.Unflatten(1, (4, 1, 1)), nn.Conv2d(4, 4, 1), nn.Flatten()))
        is not net.head
    )


def test_an_average_is_tested_through_its_copies():
    found = ran(Defended(Averaged(Net(), interleaved=False)), PGD(steps=40))
    assert share(found) == 1.0
    assert "64 features" in found.features


class Again(nn.Module):
    """A network that is asked once more when its gradient comes back, as a search in latent space asks its classifier."""

    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        with torch.no_grad():
            logits = self.net(x)
        return _Again.apply(x, logits, self.net) if torch.is_grad_enabled() and x.requires_grad else logits


class _Again(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, logits, net):
        ctx.save_for_backward(x)
        ctx.net = net
        return logits.clone()

    @staticmethod
    def backward(ctx, cotangent):
        (x,) = ctx.saved_tensors
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (gradient,) = torch.autograd.grad((cotangent * ctx.net(x)).sum(), x)
        return gradient, None, None


def test_the_readouts_stand_where_a_gradient_asks_the_classifier_again():
    net, split = Net(), images()
    found = ran(Defended(net, surrogates={"again": Surrogate(Again(net))}), PGD(steps=40))
    assert share(found) == 1.0
    readouts = Readouts(torch.arange(24), torch.randn(24, 64), torch.randn(24), torch.zeros(24))
    binary = Binary(Again(net), net.head, readouts, stochastic=False)
    x, rng = split.x.clone().requires_grad_(), ExampleRNG.make(0, "attack", torch.arange(24))
    logits = binary(x, rng)
    for label in (1, 0, 1):  # several cotangents of one answer
        (gradient,) = torch.autograd.grad(logits[:, label].sum(), x, retain_graph=True)
        by_hand = split.x.clone().requires_grad_()
        lead = (net.body(by_hand) * readouts.weight).sum() / 2 * (1 if label else -1)
        (wanted,) = torch.autograd.grad(lead, by_hand)
        torch.testing.assert_close(gradient, wanted)
        assert net(split.x).shape == (24, 4), "the layer is itself again"


def test_only_examples_with_a_readout_can_be_asked_about():
    found = plant(Defended(Linear()), images(), LINF, seed=0, draws=1, batch=32, device=CPU)
    with pytest.raises(KeyError, match="have a readout"):
        found.readouts.rows(torch.tensor([6]))


def test_the_model_comes_back_as_it_went_in():
    net = Net().train()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    ran(Defended(net), PGD(steps=2))
    assert net.training
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert not net.head._forward_hooks
    assert not net.head._forward_pre_hooks
