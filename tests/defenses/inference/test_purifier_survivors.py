"""What survives `auto`'s cheaper runs on purifiers and detectors, on 8 x 8 digits: more of it falls, and nothing is lost."""

from __future__ import annotations

import copy
from dataclasses import replace
from functools import cache, reduce
from typing import NamedTuple

import pytest
import torch
from scipy.optimize import linprog
from sklearn.datasets import load_digits
from torch import Tensor, nn

from advbench.attacks.access import DetectorView, WhiteBox
from advbench.attacks.auto import Auto
from advbench.attacks.evasion import pursue
from advbench.attacks.iterates import Search
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.stages import Bare, EveryStep, FirstToHold, staged
from advbench.attacks.survivors import share
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.defenses.defended import Defended, Detector
from advbench.defenses.inference.composition import any_rejects, call, purified
from advbench.defenses.inference.langevin import Langevin
from advbench.defenses.inference.magnet import Divergence, Judge, ReconstructionError, threshold

SHORT = Auto(steps=10, long_steps=20, queries=100, survey=50, all_targets=3, all_queries=100, survivor_queries=100)
DRAWS = 60


class Parts(NamedTuple):
    net: nn.Module
    denoiser: nn.Module
    held_out: Tensor
    x: Tensor
    y: Tensor


@cache
def parts(seed: int) -> Parts:
    """A classifier and an autoencoder of one training, held-out images for thresholds, and images to attack."""
    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(seed))
    x = (torch.from_numpy(found.images).float() / 16).unsqueeze(1)[order]
    y = torch.from_numpy(found.target)[order]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
        body = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.Tanh(), nn.Linear(40, 64), nn.Unflatten(1, (1, 8, 8)))
        for model in (net, body):
            optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
            for _ in range(250):
                noisy = x[:1200] + 0.2 * torch.randn(1200, 1, 8, 8) * (model is body)
                optimizer.zero_grad()
                answer = model(noisy)
                loss = (
                    (answer - x[:1200]).square().mean() if model is body else nn.functional.cross_entropy(answer, y[:1200])
                )
                loss.backward()
                optimizer.step()
    return Parts(net.eval(), body.eval(), x[1200:1500], x[1500:1520], y[1500:1520])


def magnet(seed: int) -> Defended:
    """A reformer, with four detectors that reject 30% of clean images each: narrow, as thin layers are what is hard."""
    net, denoiser, held_out, *_ = parts(seed)
    judges: list[Judge] = [
        *(ReconstructionError(denoiser, p, relative=True) for p in (2.0, 1.0)),
        *(Divergence(net, denoiser, t, stochastic=False, relative=True) for t in (10.0, 40.0)),
    ]
    with torch.no_grad():
        for judge in judges:
            judge.threshold.copy_(threshold(judge.mark(held_out), 0.3))
    detector = reduce(any_rejects, map(Detector, judges))
    return purified(Defended(net), denoiser, stochastic=False, detector=detector)


def malade(seed: int, noise: float = 0.05) -> Defended:
    """Six Langevin steps."""
    net, denoiser, *_ = parts(seed)
    sampler = Langevin(
        denoiser,
        steps=6,
        decay=0.9,
        step_offset=0.05,
        noise_offset=0.0,
        metropolis=False,
        clip=False,
        stochastic=noise > 0,
    )
    sampler.strength.copy_(torch.tensor([0.4, noise]))
    return purified(Defended(net), sampler, stochastic=noise > 0)


def fooled(defended: Defended, x_adv: Tensor, y: Tensor) -> Tensor:
    """The share of fresh draws on which an image is misclassified and not rejected, (n,)."""
    said = []
    with torch.no_grad():
        for draw in range(DRAWS if defended.stochastic else 1):
            rng = ExampleRNG.make(7, "report", torch.arange(len(y))).at(draw)
            wrong = call(defended.model, x_adv, rng, defended.stochastic).argmax(dim=1) != y
            if defended.detector is not None:
                wrong &= call(defended.detector.model, x_adv, rng, defended.detector.stochastic) <= 0
            said.append(wrong)
    return torch.stack(said).double().mean(dim=0)


class Outcome(NamedTuple):
    share: Tensor
    passes: Tensor
    x_adv: Tensor


def attacked(defended: Defended, attack: Auto, given: Parts, epsilon: float, surrogate: str = "faithful") -> Outcome:
    shown = defended.surrogates[surrogate]
    rng = ExampleRNG.make(0, "attack", torch.arange(len(given.y)))
    view = None if shown.detector is None else DetectorView(shown.detector.model, given.y, shown.detector.stochastic)
    with WhiteBox(shown.model, rng.fork("model"), stochastic=shown.stochastic, draws=4, detector=view) as access:
        x_adv = attack(access, given.x, Untargeted(given.y), ThreatModel("linf", epsilon), rng.fork("attack"))
    return Outcome(fooled(defended, x_adv, given.y), access.ledger.forwards + access.ledger.backwards, x_adv)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "more"), [(1, 1), (2, 0)])
def test_more_survivors_of_detectors_fall_and_nothing_is_lost_or_paid_for_the_others(seed, more):
    """On nets, autoencoders and images that nothing was chosen on (seed 0 was looked at).

    Of the second nobody but one image survives the cheaper runs, and it survives these too: as many, then.
    """
    defended, given = magnet(seed), parts(seed)
    without, found = (attacked(defended, replace(SHORT, survivor_queries=queries), given, 0.2) for queries in (0, 100))
    assert (found.share >= without.share).all()
    assert found.share.sum() >= without.share.sum() + more
    fell = without.share > 0
    assert torch.equal(found.passes[fell], without.passes[fell])
    assert torch.equal(found.x_adv[fell], without.x_adv[fell])


@pytest.mark.slow
def test_nothing_is_lost_on_a_random_purifier_whose_successes_hold_on_fresh_draws():
    defended, whole = malade(1), parts(1)
    given = whole._replace(x=whole.x[:10], y=whole.y[:10])
    without, found = (attacked(defended, replace(SHORT, survivor_queries=queries), given, 0.12) for queries in (0, 30))
    assert (found.share >= without.share - 0.15).all()  # 60 draws on either side
    assert ((found.share >= 0.5) >= (without.share >= 0.6)).all()


def test_a_stand_in_for_the_gradient_does_not_get_the_stage():
    defended, whole = malade(1, noise=0.0), parts(1)
    given = whole._replace(x=whole.x[:4], y=whole.y[:4])
    short = replace(SHORT, steps=2, long_steps=3)
    spent = {
        surrogate: [
            attacked(defended, replace(short, survivor_queries=queries), given, 0.02, surrogate).passes.sum()
            for queries in (0, 30)
        ]
        for surrogate in ("faithful", "bpda", "base")
    }
    assert spent["bpda"][0] == spent["bpda"][1]
    assert spent["base"][0] == spent["base"][1]
    assert spent["faithful"][1] > spent["faithful"][0] + 4 * 30


def test_the_views_are_of_the_chain(monkeypatch):
    defended, given = malade(0), parts(0)
    model, net, denoiser = defended.model, parts(0).net, parts(0).denoiser
    chain = staged(model)
    assert chain is model
    assert staged(net) is None
    x, y, rng = given.x[:5].double(), given.y[:5], ExampleRNG.make(0, "attack", torch.arange(5))
    model, net, denoiser = (copy.deepcopy(part).double() for part in (model, net, denoiser))
    states = model.states(x, rng)
    noise = model.purifier.trajectory(x, rng.fork("purifier"))
    torch.testing.assert_close(states, noise)
    logits = torch.stack([net(state) for state in states])
    torch.testing.assert_close(logits[-1], model(x, rng))
    torch.testing.assert_close(Bare(model, y)(x, rng), net(x))
    torch.testing.assert_close(EveryStep(model, y)(x, rng), logits.mean(dim=0))
    labels = logits.argmax(dim=2)
    wanted = labels[2].where(labels[2] != labels[-1], y)  # some are right at once, the others never or later
    found = FirstToHold(model, wanted)(x, rng)
    for row in range(5):
        right = (labels[:, row] == wanted[row]).nonzero().flatten().tolist()
        torch.testing.assert_close(found[row], logits[right[0] if right else -1, row])
    plain = torch.autograd.grad(EveryStep(model, y)(x.requires_grad_(), rng).sin().sum(), x)[0]
    monkeypatch.setattr("advbench.defenses.inference.langevin._KEPT_WHOLE", 0)
    again = torch.autograd.grad(EveryStep(model, y)(x, rng).sin().sum(), x)[0]
    torch.testing.assert_close(again, plain)


def test_the_smooth_count_listens_to_the_draws_near_the_boundary():
    logits = torch.tensor([[0.1, 0.0, -1.0], [9.0, 0.0, -1.0], [0.0, 9.0, -1.0]], requires_grad=True)
    value = share(logits, Untargeted(torch.zeros(3, dtype=torch.int64)))
    (gradient,) = torch.autograd.grad(value.sum(), logits)
    slope = gradient[:, 1] * logits.detach().std(dim=1)  # in units of the margin over the spread
    expected = torch.sigmoid(2 * torch.tensor([-0.1, -9.0, 9.0]) / logits.detach().std(dim=1))
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(slope, 2 * expected * (1 - expected))
    assert slope[0] > 2 * slope[1:].max()


class Half(nn.Module):
    """Two logits of which one is zero, (n, 2), or one score, (n,), linear in the image."""

    def __init__(self, weight: Tensor, bias: float, *, score: bool) -> None:
        super().__init__()
        self.weight, self.bias, self.score = weight, bias, score

    def forward(self, x: Tensor) -> Tensor:
        value = x.flatten(1) @ self.weight + self.bias
        return value if self.score else torch.stack([torch.zeros_like(value), value], dim=1)


def test_the_lagrangian_finds_what_linear_programming_says_there_is():
    """A linear classifier and a linear detector that pull against each other: max over the ball of the smaller lead."""
    generator, epsilon, possible = torch.Generator().manual_seed(0), 0.1, []
    for _ in range(30):
        w = torch.randn(6, generator=generator, dtype=torch.float64)
        u = 0.9 * w + 0.6 * torch.randn(6, generator=generator, dtype=torch.float64)
        b, t = (float(size) for size in 0.25 * torch.rand(2, generator=generator, dtype=torch.float64))
        # maximise s with w d - b >= s and t - u d >= s
        rows = torch.stack([torch.cat([-w, w.new_ones(1)]), torch.cat([u, w.new_ones(1)])]).numpy()
        best = linprog([0.0] * 6 + [-1.0], A_ub=rows, b_ub=[-b, t - 0.1], bounds=[(-epsilon, epsilon)] * 6 + [(None, None)])
        x, y = torch.zeros(1, 1, 2, 3, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        view = DetectorView(Half(u, 0.1 - t, score=True), y)
        rng = ExampleRNG.make(0, "attack", torch.arange(1))
        with WhiteBox(Half(w, -b, score=False), rng, detector=view) as access:
            search = Search(access, x, Untargeted(y), rng)
            pursue(search, ThreatModel("linf", epsilon, box=None), x, 100)
        if abs(best.x[-1]) > 0.003:
            possible.append(best.x[-1] > 0)
            assert bool(search.best.achieved) == (best.x[-1] > 0)
    assert 8 <= sum(possible) <= len(possible) - 3
