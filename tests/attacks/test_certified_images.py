"""Images that are proven robust: whatever an attack hands back, the harness may count none of them as broken.

The certificate is a bound in float64 on a small network: the first layer's pre-activations over the whole ball by the dual
norm, intervals from there on. Crafts go through the harness's own craft, score and statistics.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_digits
from torch import Tensor, nn

from advbench.attacks import ATTACKS
from advbench.attacks.access import WhiteBox
from advbench.attacks.calibration import HeldOut, calibrate
from advbench.attacks.ensemble import named
from advbench.attacks.threat import ThreatModel
from advbench.conformance import shortened
from advbench.defenses.defended import Defended, Surrogate
from advbench.registry.specs import Spec
from advbench.results import statistics
from advbench.tasks.evaluation import ViolationError, count, craft, score
from advbench.zoo.data import Split

CPU = torch.device("cpu")
RADII = {"linf": 0.03, "l2": 0.15, "l1": 0.4, "l0": 1.0}
SLACK = 1 + 1e-4
"""The certificate is for a ball this much larger: the harness allows for rounding."""


@cache
def digits() -> tuple[nn.Sequential, Split]:
    """A network of 16 hidden units on digits, and 40 images that it gets right."""
    torch.set_num_threads(1)
    data = load_digits()
    x, y = torch.tensor(data.images, dtype=torch.float32).unsqueeze(1) / 16, torch.tensor(data.target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))
    optimizer = torch.optim.Adam(model.parameters(), 1e-2, weight_decay=1e-4)
    for _ in range(150):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:800]), y[:800]).backward()
        optimizer.step()
    model.requires_grad_(False).eval()
    right = 800 + (model(x[800:]).argmax(dim=1) == y[800:]).nonzero().squeeze(1)[:40]
    return model, Split(x[right], y[right], right)


def certified(norm: str, epsilon: float) -> NDArray[np.bool_]:
    """The images whose margin is above zero in the whole ball, (n,): the box only makes it smaller."""
    model, split = digits()
    (w1, b1), (w2, b2) = ((one.weight.double().numpy(), one.bias.double().numpy()) for one in (model[1], model[3]))
    x, y = split.x.double().flatten(1).numpy(), split.y.numpy()
    if norm == "l0":  # the largest weights, each times the most that a pixel can change
        reach = np.sort(np.abs(w1), axis=1)[:, ::-1][:, : int(epsilon)].sum(axis=1)
    else:
        reach = epsilon * SLACK * np.linalg.norm(w1, ord={"linf": 1, "l2": 2, "l1": np.inf}[norm], axis=1)
    middle = x @ w1.T + b1
    low, high = np.maximum(middle - reach, 0), np.maximum(middle + reach, 0)
    leads = []
    for k in range(10):
        weight = w2[y] - w2[k]
        lead = (weight.clip(0) * low + weight.clip(max=0) * high).sum(axis=1) + b2[y] - b2[k]
        leads.append(np.where(y == k, np.inf, lead))
    proven: NDArray[np.bool_] = np.min(leads, axis=0) > 1e-4
    return proven


def harnessed(attack: Any, norm: str) -> tuple[NDArray[np.float64], Any]:
    """The share of right answers by image, as a board counts them, and the outcomes of the examples."""
    model, split = digits()
    threat, arguments = (
        ThreatModel(norm, None if attack.minimal_norm else RADII[norm]),
        {"seed": 0, "batch": 32, "device": CPU},
    )
    found = craft(attack, Surrogate(model), split, threat, draws=1, **arguments)
    defended = Defended(model)
    clean = count(defended, split, draws=1, **arguments)
    options = {"norm": norm, "minimal_norm": attack.minimal_norm, "epsilon": RADII[norm]}
    scored = score(defended, split, clean, [found.x_adv], **options, **arguments)
    facts = {"minimal_norm": attack.minimal_norm, "label": "one"}
    record: Any = SimpleNamespace(attack=facts, threat={"norm": norm, "epsilon": RADII[norm]})
    robust = statistics.robust(record, scored.examples)
    assert scored.accuracies[0] == pytest.approx(robust.mean())
    return robust, scored.examples


@pytest.mark.parametrize("norm", RADII)
def test_the_certificate_says_something(norm):
    """Some images are proven, some are not, and none of 2,000 random points of the ball contradicts it."""
    model, split = digits()
    proven = certified(norm, RADII[norm])
    assert 5 <= proven.sum() <= 37
    rng = np.random.default_rng(0)
    x = split.x[proven].double().flatten(1).numpy()
    for _ in range(2000 // len(x) + 1):
        delta = rng.normal(size=x.shape)
        if norm == "l0":
            delta *= np.arange(64) == rng.integers(64, size=(len(x), 1))
            delta = np.where(delta == 0, 0, np.where(delta > 0, 1 - x, -x))
        else:
            order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
            delta *= RADII[norm] / np.linalg.norm(delta, ord=order, axis=1, keepdims=True)
        logits = model(torch.tensor((x + delta).clip(0, 1), dtype=torch.float32))
        assert (logits.argmax(dim=1) == split.y[proven]).all()


def attack_of(name: str) -> Any:
    """The attack cut down; where it learns from held-out images, from digits or from none."""
    if name == "hop-skip-jump":
        return named("hop-skip-jump(queries=300)")
    if name != "estimated-noise":
        return shortened(Spec(name))
    _, split = digits()
    held_out = HeldOut(x=split.x, y=split.y, index=split.index, threat=ThreatModel("linf", 0.1))
    return calibrate(named("estimated-noise(points=5)"), held_out)


CELLS = [(name, norm) for name in ATTACKS for norm in RADII if norm in named(name).norms]


@pytest.mark.parametrize(("name", "norm"), CELLS)
def test_no_attack_breaks_a_certified_image(name, norm):
    proven = certified(norm, RADII[norm])
    attack = attack_of(name)
    robust, examples = harnessed(attack, norm)
    assert (robust[proven] == 1).all()
    if attack.minimal_norm:
        distance = getattr(examples, f"distance_{norm}")
        broken = (examples.report_correct == 0) & np.isfinite(distance)
        assert (distance[broken & proven] > RADII[norm]).all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_beyond_the_certificate_images_do_break(norm):
    """So that the cells above can fail: at eight times the radius most images are lost."""
    model, split = digits()
    threat = ThreatModel(norm, 8 * RADII[norm])
    found = craft(named("pgd"), Surrogate(model), split, threat, seed=0, draws=1, batch=32, device=CPU)
    assert (model(found.x_adv).argmax(dim=1) != split.y).double().mean() > 0.5


@dataclass(frozen=True)
class Cheat:
    """Walks straight towards an image of another class: by `share` of the way, or to the length `length` in the norm."""

    norm: str
    length: float | None = None
    minimal_norm: bool = False
    norms: ClassVar[frozenset[str]] = frozenset(RADII)
    knowledge: ClassVar[type] = WhiteBox

    def __call__(self, access: Any, x: Tensor, goal: Any, threat: ThreatModel, rng: Any) -> Tensor:
        access.logits(x)
        _, split = digits()
        other = torch.stack([split.x[split.y != label][0] for label in goal.y])
        delta = (other - x).flatten(1)
        if self.length is not None:
            size = delta.norm(p={"linf": torch.inf, "l2": 2, "l1": 1}[self.norm], dim=1, keepdim=True)
            delta = delta / size * self.length
        return x + delta.view_as(x)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
@pytest.mark.parametrize("excess", [1.001, 2.0, None])
def test_an_attack_that_leaves_the_ball_is_an_error(norm, excess):
    """By a thousandth of the radius, by all of it, or by handing in another image."""
    length = None if excess is None else excess * RADII[norm]
    with pytest.raises(ViolationError, match=f"within {norm}"):
        harnessed(Cheat(norm, length), norm)


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_a_minimal_norm_attack_that_goes_too_far_breaks_nothing_within_the_radius(norm):
    robust, examples = harnessed(Cheat(norm, minimal_norm=True), norm)
    assert (examples.report_correct == 0).mean() > 0.9, "another class's image is misclassified"
    assert (robust == 1).all(), "but far outside"
    _, split = digits()
    other = torch.stack([split.x[split.y != label][0] for label in split.y])
    expected = np.linalg.norm((other - split.x).double().flatten(1), ord={"linf": np.inf, "l2": 2, "l1": 1}[norm], axis=1)
    np.testing.assert_allclose(getattr(examples, f"distance_{norm}"), expected, rtol=1e-6)
    rms = (other - split.x).double().flatten(1).square().mean(dim=1).sqrt()
    np.testing.assert_allclose(examples.rms, rms, rtol=1e-6)
