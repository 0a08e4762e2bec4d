"""FMN and DeepFool as published, held to plain loops and to peers; and both forms together, never weaker than either."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import Ledger, WhiteBox
from advbench.attacks.capabilities import Passes
from advbench.attacks.ddn import DDN
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fmn import FMN
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted

EVERY = [(FMN(steps=30), norm) for norm in ("l2", "linf", "l1", "l0")] + [(DeepFool(), norm) for norm in ("l2", "linf")]
ORDER = {"l2": 2, "linf": math.inf, "l1": 1, "l0": 0}

Problem = tuple[nn.Module, Tensor, Tensor]


def name(value: Any) -> str | None:
    return type(value).__name__ if hasattr(value, "knowledge") else None


@cache
def digits(kind: str) -> Problem:
    """A small net on digits and 16 images that it gets right, float64.

    masked: sigmoid units, trained at temperature 50 and used at 1, so that its gradients are extreme or next to nothing.
    """
    torch.set_num_threads(1)
    data = load_digits()
    x, y = torch.tensor(data.images).unsqueeze(1) / 16, torch.tensor(data.target)
    unit, temperature, steps = (nn.Sigmoid, 50.0, 150) if kind == "masked" else (nn.ReLU, 1.0, 40)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(64, 48), unit(), nn.Linear(48, 48), unit(), nn.Linear(48, 10)
        model = nn.Sequential(nn.Flatten(), *layers).double()
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:400]) / temperature, y[:400]).backward()
        optimizer.step()
    model.requires_grad_(False).eval()
    right = 400 + (model(x[400:600]).argmax(dim=1) == y[400:600]).nonzero().squeeze(1)[:16]
    assert len(right) == 16
    return model, x[right], y[right]


def run(problem: Problem, attack: Any, norm: Any) -> tuple[Tensor, Ledger]:
    model, x, y = problem
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with WhiteBox(model, rng.fork("model")) as access:
        return attack(access, x, Untargeted(y), ThreatModel(norm, None), rng.fork("attack")), access.ledger


def distances(problem: Problem, x_adv: Tensor, norm: Any) -> Tensor:
    """Of each image to its adversarial, infinite where there is none."""
    model, x, y = problem
    return balls.distance(x_adv - x, norm).where(model(x_adv).argmax(dim=1) != y, torch.inf)


def onto_ball(delta: Tensor, radius: float, norm: str) -> Tensor:
    """Of one perturbation."""
    size = delta.abs().flatten()
    if norm == "l2":
        return delta * min(1.0, radius / max(float(size.norm()), 1e-12))
    if norm == "linf":
        return delta.clamp(-radius, radius)
    if norm == "l0":
        threshold = size.sort(descending=True).values[max(int(radius), 1) - 1]
        return torch.where(delta.abs() >= threshold, delta, 0.0)
    if size.sum() <= radius:
        return delta
    ordered = size.sort(descending=True).values
    shifts = (ordered.cumsum(dim=0) - radius) / torch.arange(1, len(size) + 1)
    shift = shifts[(ordered > shifts).nonzero().max()]
    return delta.sign() * (delta.abs() - shift).clamp(min=0)


def plain_fmn(model: nn.Module, image: Tensor, label: int, norm: str, steps: int) -> tuple[Tensor, float]:
    """The paper's algorithm on one image: all iterates, the last one too, and how far the nearest adversarial is."""
    dual = {"l2": 2, "linf": 1, "l1": math.inf}.get(norm)
    delta, radius, best = torch.zeros_like(image), 1.0 if norm == "l0" else math.inf, math.inf
    points = []
    worst = float(torch.maximum(image, 1 - image).flatten().norm(p=ORDER[norm]))
    for i in range(steps + 1):
        z = (image + delta).requires_grad_()
        points.append(z.detach())
        logits = model(z)[0]
        wrong = logits.clone()
        wrong[label] = -math.inf
        loss = wrong.max() - logits[label]
        adversarial, length = bool(logits.argmax() != label), float(delta.flatten().norm(p=ORDER[norm]))
        best = min(best, length) if adversarial else best
        if i == steps:
            return torch.cat(points), best
        (gradient,) = torch.autograd.grad(loss, z)
        annealing = (1 + math.cos(math.pi * i / steps)) / 2
        alpha, gamma = 0.01 + 0.99 * annealing, 0.001 + 0.049 * annealing
        if norm == "l0":
            smaller, larger = (
                min(radius - 1, math.floor(radius * (1 - gamma))),
                max(radius + 1, math.floor(radius * (1 + gamma))),
            )
            radius = max(min(smaller, best), 0) if adversarial else larger
        elif adversarial:
            radius = min(radius * (1 - gamma), best)
        elif best < math.inf:
            radius = radius * (1 + gamma)
        else:
            radius = length + abs(float(loss.detach())) / max(float(gradient.flatten().norm(p=dual)), 1e-12)
        radius = min(radius, worst)
        delta = onto_ball(delta + alpha * gradient / max(float(gradient.norm()), 1e-12), radius, norm)
        delta = (image + delta).clamp(0, 1) - image
    raise AssertionError


def plain_deepfool(model: nn.Module, image: Tensor, label: int, norm: str, steps: int) -> Tensor:
    """The authors' code on one image, all classes, with clipping: the first iterate that breaks it, or the last."""
    z, total = image, torch.zeros_like(image)
    for _ in range(steps):
        if model(z)[0].argmax() != label:
            break
        ways = []
        for k in range(10):
            point = z.detach().requires_grad_()
            logits = model(point)[0]
            height = logits[k] - logits[label]
            (normal,) = torch.autograd.grad(height, point)
            slope = normal.norm() if norm == "l2" else normal.abs().sum()
            direction = normal / slope if norm == "l2" else normal.sign()
            ways.append((float((abs(height) / slope).detach()) if k != label else math.inf, direction))
        length, direction = min(ways, key=lambda way: way[0])
        total = total + (length + 1e-4) * direction
        z = (image + 1.02 * total).clamp(0, 1)
    return z.detach()


@pytest.mark.parametrize("norm", ORDER)
@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_published_fmn_is_the_plain_loop(kind, norm):
    problem = model, x, y = digits(kind)
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    x_adv, _ = run(problem, FMN(steps=25, form="published"), norm)
    hook.remove()
    looked, found = torch.stack(seen, dim=1), distances(problem, x_adv, norm)
    for i in range(8):
        points, nearest = plain_fmn(model, x[i : i + 1], int(y[i]), norm, 25)
        torch.testing.assert_close(looked[i], points, rtol=0, atol=1e-6)
        assert float(found[i]) == pytest.approx(nearest, rel=1e-6)


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_published_deepfool_is_the_plain_loop(kind, norm):
    problem = model, x, y = digits(kind)
    found, _ = run(problem, DeepFool(form="published"), norm)
    expected = torch.cat([plain_deepfool(model, x[i : i + 1], int(y[i]), norm, 50) for i in range(8)])
    torch.testing.assert_close(found[:8], expected, rtol=0, atol=1e-8)


def test_published_deepfool_keeps_the_likeliest_classes_of_the_clean_image():
    """As the authors' code does: with one candidate it goes to the second class, whatever comes nearer on the way."""
    problem = model, x, y = digits("plain")
    clean = model(x).topk(2, dim=1).indices[:, 1]
    found, _ = run(problem, DeepFool(candidates=1, form="published"), "l2")
    assert (model(found).argmax(dim=1) != y).all()
    assert (model(found).argmax(dim=1) == clean).double().mean() > 0.8


def peer(module: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(module, reason="the peer is optional")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("norm", "attack"), [("l2", "L2DeepFoolAttack"), ("linf", "LinfDeepFoolAttack")])
@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_published_deepfool_is_foolboxes(kind, norm, attack):
    foolbox = peer("foolbox")
    problem = model, x, y = digits(kind)
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    theirs = getattr(foolbox.attacks, attack)().run(wrapped, x, foolbox.Misclassification(y))
    ours, _ = run(problem, DeepFool(form="published"), norm)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("attack", "norm"), EVERY, ids=name)
@pytest.mark.parametrize("kind", ["plain", "masked"])
def test_both_forms_together_are_the_nearer_of_the_two_at_their_joint_cost(kind, attack, norm):
    problem = digits(kind)
    found, passes, ledgers = {}, {}, {}
    for form in ("published", "box-aware", "both"):
        x_adv, ledgers[form] = run(problem, replace(attack, form=form), norm)
        found[form] = distances(problem, x_adv, norm)
        passes[form] = ledgers[form].forwards, ledgers[form].backwards
    assert torch.equal(found["both"], found["published"].minimum(found["box-aware"]))
    assert torch.equal(ledgers["both"].forwards, ledgers["published"].forwards + ledgers["box-aware"].forwards)
    assert torch.equal(ledgers["both"].backwards, ledgers["published"].backwards + ledgers["box-aware"].backwards)
    assert found["both"].isfinite().sum() >= found["published"].isfinite().sum()
    assert found["both"].median() <= found["published"].median()


def test_either_form_is_the_stronger_on_one_model():
    """On images of the plain net the box-aware FMN breaks more; on the masked net the published forms come nearer."""
    plain, masked = digits("plain"), digits("masked")
    both = ("published", "box-aware")
    broken = {form: distances(plain, run(plain, FMN(steps=50, form=form), "l2")[0], "l2").isfinite().sum() for form in both}
    assert broken["box-aware"] > broken["published"]
    for attack, norm in ((FMN(steps=50), "l1"), (DeepFool(), "l2")):
        nearest = {f: distances(masked, run(masked, replace(attack, form=f), norm)[0], norm).median() for f in both}
        assert nearest["published"] < nearest["box-aware"]


@pytest.mark.parametrize("attack", [FMN(steps=3), DeepFool(steps=2)], ids=name)
def test_an_image_that_neither_form_breaks_comes_back_with_the_larger_margin(attack):
    model, x, y = digits("plain")

    class Guarded(nn.Module):
        """The same gradients, with a lead of the right class that nothing wears off."""

        def forward(self, z: Tensor) -> Tensor:
            return model(z) + 1e3 * nn.functional.one_hot(y[: len(z)], 10)

    problem = Guarded(), x, y
    margins = {}
    for form in ("published", "box-aware", "both"):
        logits = problem[0](run(problem, replace(attack, form=form), "l2")[0])
        true = nn.functional.one_hot(y, 10).bool()
        margins[form] = logits.masked_fill(true, -torch.inf).amax(dim=1) - logits[true]
    assert (margins["both"] < 0).all()
    larger = margins["published"].maximum(margins["box-aware"])
    assert (margins["both"] >= larger).all()  # DeepFool's third run may come nearer still
    assert isinstance(attack, DeepFool) or torch.equal(margins["both"], larger)


@pytest.mark.parametrize("attack", [FMN(steps=10), DeepFool()], ids=name)
def test_an_image_that_is_wrong_already_costs_one_pass(attack):
    model, x, y = digits("plain")
    wrong = torch.arange(len(y)) % 3 == 0
    x_adv, ledger = run((model, x, torch.where(wrong, (y + 1) % 10, y)), attack, "l2")
    assert torch.equal(x_adv[wrong], x[wrong])
    assert (ledger.forwards[wrong] == 1).all()
    assert not ledger.backwards[wrong].gt(1).any()


@pytest.mark.parametrize(("make", "forwards", "backwards", "runs"), [(FMN, 21, 20, 2), (DeepFool, 41, 180, 3)])
def test_what_withstands_both_forms_costs_their_passes_and_deepfools_third_run(make, forwards, backwards, runs):
    threat = ThreatModel("l2", None)
    assert make(steps=20, form="published").passes(threat, 10) == Passes(forwards, backwards)
    assert make(steps=20).passes(threat, 10) == Passes(runs * forwards, runs * backwards)


@pytest.mark.parametrize(("kind", "steps"), [("plain", 4), ("plain", 5), ("masked", 2)])
def test_deepfools_third_run_is_for_what_both_forms_leave(kind, steps):
    """With few linearisations the forms break some images: these stay as they are, and of the others more break."""
    problem, found = digits(kind), {}
    for form in ("published", "box-aware", "both"):
        found[form] = distances(problem, run(problem, DeepFool(steps=steps, form=form), "l2")[0], "l2")
    nearest = found["published"].minimum(found["box-aware"])
    assert 1 <= nearest.isfinite().sum() < len(nearest)
    assert torch.equal(found["both"][nearest.isfinite()], nearest[nearest.isfinite()])
    assert found["both"].isfinite().sum() >= nearest.isfinite().sum()


@pytest.mark.parametrize("make", [FMN, DeepFool])
def test_an_unknown_form_is_named(make):
    with pytest.raises(ValueError, match="Expected `form` to be both, published or box-aware, got 'old'"):
        make(form="old")


def plain_ddn(model: nn.Module, image: Tensor, label: int, steps: int) -> float:
    """The length of the shortest adversarial of algorithm 1 of Rony et al. 2019, on the cross-entropy, of one image."""
    delta, length, shortest = torch.zeros_like(image), 1.0, math.inf
    for step in range(steps + 1):
        z = (image + delta).requires_grad_()
        logits = model(z)
        broken = int(logits.argmax()) != label
        if broken:
            shortest = min(shortest, float(delta.norm()))
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(logits, torch.tensor([label])), z)
        alpha = 0.01 + (1.0 - 0.01) * (1 + math.cos(math.pi * step / steps)) / 2
        delta = delta + alpha * gradient / gradient.norm()
        length *= 0.95 if broken else 1.05
        delta = (image + length * delta / delta.norm()).clamp(0, 1) - image
    return shortest


@pytest.mark.parametrize("steps", [20, 60])
def test_ddn_is_the_plain_loop(steps):
    problem = digits("plain")
    model, x, y = problem
    found = distances(problem, run(problem, DDN(steps=steps), "l2")[0], "l2")
    expected = [plain_ddn(model, x[i : i + 1], int(y[i]), steps) for i in range(len(x))]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=found.dtype), rtol=1e-5, atol=0)


def test_deepfools_runs_ask_a_random_model_about_every_image():
    """One lucky draw breaks no image of a random model, so the third run leaves none out."""
    model, x, y = digits("plain")
    asked = []

    class Noisy(nn.Module):
        def forward(self, z: Tensor, rng: ExampleRNG) -> Tensor:
            asked.append(len(z))
            return model(z + 0.1 * rng.normal(tuple(z.shape[1:]), z.dtype))

    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with WhiteBox(Noisy(), rng.fork("model"), stochastic=True) as access:
        DeepFool(steps=10)(access, x, Untargeted(y), ThreatModel("l2", None), rng.fork("attack"))
    assert set(asked) == {len(x)}
