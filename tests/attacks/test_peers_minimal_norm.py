"""Minimal-norm attacks and PGD beside foolbox, adv-lib, torchattacks and SciPy on small networks: never weaker."""

from __future__ import annotations

import copy
import importlib
import sys
import types
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.carlini_wagner import CarliniWagner
from advbench.attacks.ddn import DDN
from advbench.attacks.deepfool import DeepFool
from advbench.attacks.fmn import FMN
from advbench.attacks.lbfgs import LBFGS
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Norm, Targeted, ThreatModel, Untargeted

ORDER = {"l2": 2, "linf": float("inf"), "l1": 1, "l0": 0}
PREFIX = {"l2": "L2", "linf": "LInf", "l1": "L1", "l0": "L0"}
RADIUS = 0.1

Problem = tuple[nn.Module, Tensor, Tensor]


def peer(name: str) -> Any:
    """A module of an optional peer, imported without its warnings; skips where it is not there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(name, reason=f"the peer is optional: pip install --no-deps {name.split('.')[0]}")


@pytest.fixture(scope="module")
def adv_lib() -> Iterator[Any]:
    """adv-lib's attacks; visdom, which only draws, is replaced where it is not there."""
    peer("adv_lib")
    with pytest.MonkeyPatch.context() as patch:
        try:
            importlib.import_module("visdom")
        except ImportError:
            visdom = types.ModuleType("visdom")
            vars(visdom)["Visdom"] = object
            patch.setitem(sys.modules, "visdom", visdom)
        peer("adv_lib.attacks.carlini_wagner")
        yield peer("adv_lib.attacks")


def fitted(x: Tensor, y: Tensor, radius: float) -> nn.Module:
    """A small convnet, trained plainly or (`radius` > 0) against one-step attacks in the linf ball."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        body = [nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(128, 32), nn.ReLU()]
        model = nn.Sequential(*body, nn.Linear(32, 5))
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    for step in range(80):
        z = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(z), y), z)
        shift = radius * min(1, step / 40) * gradient.sign()
        optimizer.zero_grad()
        nn.functional.cross_entropy(model((x + shift).clamp(0, 1)), y).backward()
        optimizer.step()
    return model.requires_grad_(False).eval()


@pytest.fixture(scope="module", params=["undefended", "robust"])
def problem(request: pytest.FixtureRequest) -> Problem:
    """A network fitted to noisy copies of five sparse images, and 40 fresh ones that it gets right, float32."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    prototypes = (torch.randn(5, 1, 8, 8, generator=generator)).clamp(0, 1)
    y = torch.arange(500) % 5
    x = (prototypes[y] + 0.3 * torch.randn(500, 1, 8, 8, generator=generator)).clamp(0, 1)
    model = fitted(x[:400], y[:400], RADIUS if request.param == "robust" else 0.0)
    x, y = x[400:], y[400:]
    right = (model(x).argmax(dim=1) == y).nonzero().squeeze(1)[:40]
    assert len(right) == 40
    return model, x[right], y[right]


def distances(problem: Problem, x_adv: Tensor, norm: Norm) -> Tensor:
    """Of each image to its adversarial; infinite where there is none in the box."""
    model, x, y = problem
    lengths = balls.distance(x_adv - x, norm)
    inside = ((x_adv >= -1e-6) & (x_adv <= 1 + 1e-6)).flatten(1).all(dim=1)
    return lengths.where((model(x_adv).argmax(dim=1) != y) & inside, torch.inf)


def ours(problem: Problem, attack: Any, norm: Norm, epsilon: float | None = None) -> Tensor:
    model, x, y = problem
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with attack.knowledge(model, rng.fork("model")) as access:
        return attack(access, x, Untargeted(y), ThreatModel(norm, epsilon), rng.fork("attack"))


def no_weaker(problem: Problem, attack: Any, norm: Norm, theirs: Callable[[], Tensor]) -> None:
    """Everything is broken, at a median distance of at most 1.02 times the peer's."""
    found = distances(problem, ours(problem, attack, norm), norm)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        reference = distances(problem, theirs().detach(), norm)
    assert found.isfinite().all()
    assert found.median() <= 1.02 * reference.median()


def foolbox_run(problem: Problem, name: str, **arguments: Any) -> Tensor:
    foolbox = peer("foolbox")
    model, x, y = problem
    wrapped = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    return getattr(foolbox.attacks, name)(**arguments).run(wrapped, x, foolbox.Misclassification(y))


@pytest.mark.parametrize("norm", ORDER)
def test_fmn_beside_adv_lib(problem, adv_lib, norm):
    model, x, y = problem
    no_weaker(problem, FMN(), norm, lambda: adv_lib.fmn(model, x, y, ORDER[norm], steps=100))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("norm", ORDER)
def test_published_fmn_is_adv_libs(problem, adv_lib, norm, monkeypatch):
    """But for the last iterate, which adv-lib does not look at, and its l2 ball, on whose sphere it puts what is inside."""
    if norm == "l2":
        inside = lambda delta, radius: delta.mul_((radius / balls.distance(delta, "l2")).clamp_(max=1).view(-1, 1, 1, 1))  # noqa: E731
        module = sys.modules["adv_lib.attacks.fast_minimum_norm"]
        monkeypatch.setattr(module, "l2_projection_", lambda δ, ε: inside(δ, ε))
    model, x, y = copy.deepcopy(problem[0]).double(), problem[1].double(), problem[2]
    wide = model, x, y
    theirs = distances(wide, adv_lib.fmn(model, x, y, ORDER[norm], steps=60).detach(), norm)
    found = distances(wide, ours(wide, FMN(steps=60, form="published"), norm), norm)
    assert theirs.isfinite().any()
    assert (found <= theirs * (1 + 1e-6)).all()
    assert (found >= theirs * (1 - 1e-3)).double().mean() >= 0.9


@pytest.mark.parametrize("norm", ORDER)
def test_fmn_beside_foolbox(problem, norm):
    peer("foolbox")
    no_weaker(problem, FMN(), norm, lambda: foolbox_run(problem, f"{PREFIX[norm]}FMNAttack", steps=100))


def test_ddn_beside_adv_lib(problem, adv_lib):
    model, x, y = problem
    no_weaker(problem, DDN(), "l2", lambda: adv_lib.ddn(model, x, y, steps=100, levels=None))


def test_ddn_beside_foolbox(problem):
    peer("foolbox")
    no_weaker(problem, DDN(), "l2", lambda: foolbox_run(problem, "DDNAttack", steps=100))


def test_carlini_wagner_beside_adv_lib(problem, adv_lib):
    model, x, y = problem
    attack = adv_lib.carlini_wagner.carlini_wagner_l2
    theirs = lambda: attack(model, x, y, max_iterations=100, binary_search_steps=4)  # noqa: E731
    no_weaker(problem, CarliniWagner(steps=100, search_steps=4), "l2", theirs)


def test_carlini_wagner_beside_foolbox(problem):
    peer("foolbox")
    theirs = lambda: foolbox_run(problem, "L2CarliniWagnerAttack", steps=100, binary_search_steps=4)  # noqa: E731
    no_weaker(problem, CarliniWagner(steps=100, search_steps=4), "l2", theirs)


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_deepfool_beside_adv_lib(problem, adv_lib, norm):
    model, x, y = problem
    no_weaker(problem, DeepFool(), norm, lambda: adv_lib.df(model, x, y, steps=50, norm=ORDER[norm]))


@pytest.mark.parametrize(("norm", "name"), [("l2", "L2DeepFoolAttack"), ("linf", "LinfDeepFoolAttack")])
def test_deepfool_beside_foolbox(problem, norm, name):
    peer("foolbox")
    no_weaker(problem, DeepFool(), norm, lambda: foolbox_run(problem, name))


def test_deepfool_beside_torchattacks(problem):
    torchattacks = peer("torchattacks")
    model, x, y = problem
    no_weaker(problem, DeepFool(), "l2", lambda: torchattacks.DeepFool(model, steps=50)(x, y))


def test_carlini_wagner_beside_torchattacks(problem):
    torchattacks = peer("torchattacks")
    model, x, y = problem
    # It takes one constant for all images, and breaks half of them.
    theirs = lambda: torchattacks.CW(model, c=1, steps=100, lr=0.01)(x, y)  # noqa: E731
    no_weaker(problem, CarliniWagner(steps=100, search_steps=3, initial_constant=1.0), "l2", theirs)


@pytest.mark.parametrize("library", ["foolbox", "torchattacks"])
def test_pgd_breaks_what_the_peers_break(problem, library):
    """Random starts differ, so one image in forty may have another verdict; one start of ours against one of theirs."""
    model, x, y = problem
    epsilon = 2 * RADIUS
    module = peer(library)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        if library == "foolbox":
            wrapped = module.PyTorchModel(model, bounds=(0, 1), device="cpu")
            attack = module.attacks.LinfPGD(steps=40, rel_stepsize=0.1)
            _, theirs, _ = attack(wrapped, x, module.criteria.Misclassification(y), epsilons=epsilon)
        else:
            theirs = module.PGD(model, eps=epsilon, alpha=0.1 * epsilon, steps=40)(x, y)
    x_adv = ours(problem, PGD(), "linf", epsilon)
    assert (balls.distance(x_adv - x, "linf") <= epsilon * (1 + 1e-5)).all()
    broken, theirs = model(x_adv).argmax(dim=1) != y, model(theirs).argmax(dim=1) != y
    assert theirs.any()
    assert (broken != theirs).sum() <= 1


def test_lbfgs_ends_where_scipys_does(problem):
    """c |r|^2 + cross-entropy towards the next class, minimised in the box for one image after the other."""
    model, x, y, c = copy.deepcopy(problem[0]).double(), problem[1][:10].double(), problem[2][:10], 0.1
    goal = Targeted(y, (y + 1) % 5)
    rng = ExampleRNG.make(0, "attack", torch.arange(len(x)))
    with LBFGS.knowledge(model, rng) as access:
        found = LBFGS(c=c, squared=True, steps=200)(access, x, goal, ThreatModel("l2", None), rng)
    theirs = []
    for image, target in zip(x, goal.target, strict=True):

        def objective(point, image=image, target=target):
            z = torch.tensor(point).view(1, *image.shape).requires_grad_()
            value = c * (z - image).square().sum() + nn.functional.cross_entropy(model(z), target.unsqueeze(0))
            return value.item(), torch.autograd.grad(value, z)[0].flatten().numpy()

        ended = minimize(objective, image.flatten().numpy(), jac=True, method="L-BFGS-B", bounds=[(0, 1)] * image.numel())
        theirs.append(torch.tensor(ended.x).view_as(image))
    theirs = torch.stack(theirs)

    def total(z):
        return (c * (z - x).flatten(1).square().sum(dim=1) + nn.functional.cross_entropy(model(z), goal.target)).sum()

    assert torch.equal(model(found).argmax(dim=1), goal.target)
    assert total(found) <= 1.02 * total(theirs)
    assert balls.distance(found - x, "l2").median() <= 1.02 * balls.distance(theirs - x, "l2").median()
