from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.fab import FAB, FABT
from advbench.attacks.hyperplane import way_to_hyperplane
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted

NORMS = ("linf", "l2", "l1")


def rng(n: int) -> ExampleRNG:
    return ExampleRNG.make(0, "attack", torch.arange(n))


def images(n: int, side: int = 4) -> Tensor:
    x = torch.rand(n, 1, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return (1.5 * x - 0.25).clamp(0, 1)


def planes(linear, classes: int, side: int = 4) -> nn.Module:
    weight = torch.randn(classes, 1, side, side, generator=torch.Generator().manual_seed(classes), dtype=torch.float64)
    return linear(weight, torch.zeros(classes, dtype=torch.float64))


def attacked(attack: FAB, model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> tuple[Tensor, WhiteBox]:
    with WhiteBox(model, rng(len(x))) as access:
        return attack(access, x, Untargeted(y), threat, rng(len(x))), access


def smallest(model: nn.Module, x: Tensor, y: Tensor, threat: ThreatModel) -> Tensor:
    """The smallest perturbation of a linear model: the shortest of the ways to all boundaries, shape (n,)."""
    logits, lengths = model(x).detach(), []
    for target in range(logits.shape[1]):
        normal = (model.weight[target] - model.weight[y]).detach()
        height = logits.gather(1, y.unsqueeze(1)).squeeze(1) - logits[:, target]
        way = way_to_hyperplane(x, normal, height, threat)
        reached = ((normal * way).flatten(1).sum(dim=1) - height).abs() < 1e-9
        lengths.append(balls.distance(way, threat.norm).where(reached & (target != y), torch.inf))
    return torch.stack(lengths).amin(dim=0)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("box", [(0.0, 1.0), None])
@pytest.mark.parametrize("classes", [2, 3, 10])
@pytest.mark.parametrize("make", [FAB, FABT])
def test_linear_models_are_crossed_where_they_are_nearest(make, classes, box, norm, linear):
    """With an overshoot of 1e-6 the exact distance is found, on the wrong side of the boundary.

    `FAB` chooses the nearest boundary as if there were no box, as the paper does: with one, it may choose another.
    """
    model, x, threat = planes(linear, classes), images(6), ThreatModel(norm, None, box)
    y = model(x).argmax(dim=1)
    x_adv, _ = attacked(make(steps=4, eta=1 + 1e-6), model, x, y, threat)
    assert (model(x_adv).argmax(dim=1) != y).all()
    assert not balls.violations(x_adv, x, threat).any()
    found, expected = balls.distance(x_adv - x, norm), smallest(model, x, y, threat)
    assert (found >= expected * (1 - 1e-6)).all()
    exact = (found <= expected * (1 + 1e-4)).float().mean()
    assert exact >= 0.5 if make is FAB and box is not None else exact == 1


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("make", [FAB, FABT])
def test_curved_boundaries_are_found_as_near_as_by_exhaustive_search(make, norm):
    """Images of two values: the nearest error of a small network on a grid of 401 x 401 points."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)).double()
    model[1].weight.data *= 6
    model[1].bias.data -= model[1].weight.data.sum(dim=1) / 2
    along = torch.linspace(0, 1, 401, dtype=torch.float64)
    grid = torch.cartesian_prod(along, along).view(-1, 1, 1, 2)
    labels = model(grid).argmax(dim=1)
    x = torch.rand(30, 1, 1, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    y = model(x).argmax(dim=1)
    nearest = torch.stack(
        [balls.distance(grid[labels != label] - image, norm).amin() for image, label in zip(x, y, strict=True)]
    )
    x_adv, _ = attacked(make(steps=100), model, x, y, ThreatModel(norm, None))
    broken = model(x_adv).argmax(dim=1) != y
    ratio = balls.distance(x_adv - x, norm)[broken] / nearest[broken]
    assert broken.float().mean() > 0.9
    assert ratio.min() > 0.9  # the grid's points are 1/400 apart
    assert ratio.median() < 1.1


def test_a_step_costs_two_forwards_and_a_backward_for_each_boundary(linear):
    x, threat = images(4), ThreatModel("l2", None)
    for classes in (2, 3, 12):
        model = planes(linear, classes)
        y, steps = model(x).argmax(dim=1), 3
        _, whole = attacked(FAB(steps=steps), model, x, y, threat)
        _, single = attacked(FABT(steps=steps), model, x, y, threat)
        runs = min(9, classes - 1)
        assert whole.ledger.forwards.tolist() == [2 * steps] * 4
        assert whole.ledger.backwards.tolist() == [steps * (classes - 1)] * 4
        assert single.ledger.forwards.tolist() == [1 + runs * 2 * steps] * 4
        assert single.ledger.backwards.tolist() == [runs * steps] * 4


@pytest.mark.parametrize("norm", NORMS)
def test_with_a_budget_an_example_leaves_once_it_is_near_enough(norm, linear):
    model, x = planes(linear, 4), images(12)
    y = model(x).argmax(dim=1)
    y[0] = (y[0] + 1) % 4  # already misclassified
    distances = smallest(model, x, y, ThreatModel(norm, None))
    threat = ThreatModel(norm, float(distances[1:].median()) * 1.1)
    found = {stop: attacked(FABT(steps=10, stop=stop), model, x, y, threat) for stop in ("success", "never")}
    for stop, (x_adv, access) in found.items():
        assert torch.equal(x_adv[0], x[0])
        near = balls.distance(x_adv - x, norm) <= threat.epsilon_or_inf
        assert torch.equal(near[1:], distances[1:] * 1.06 <= threat.epsilon_or_inf)
        left = access.ledger.forwards < 1 + 3 * 20
        assert torch.equal(left, near & (stop == "success"))
    assert found["success"][1].ledger.forwards[0] == 2  # one for the targets, one to see that it is wrong


def test_the_nearest_of_all_iterates_is_kept():
    """What comes back is no farther than any adversarial image that the attack looked at."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 5)).double()
    for parameter in model.parameters():
        parameter.data *= 2
    x, seen = images(6), []
    y = model(x).argmax(dim=1)
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    x_adv, _ = attacked(FABT(steps=15), model, x, y, ThreatModel("l2", None))
    hook.remove()
    looked = torch.stack(seen)
    wrong = model(looked.flatten(0, 1)).argmax(dim=1).view(len(looked), -1) != y
    distances = balls.distance((looked - x).flatten(0, 1), "l2").view_as(wrong).where(wrong, torch.inf)
    broken = model(x_adv).argmax(dim=1) != y
    assert broken.any()
    torch.testing.assert_close(balls.distance(x_adv - x, "l2")[broken], distances.amin(dim=0)[broken])


class Steep(nn.Module):
    """Two layers of steep tanh units: away from their thresholds the gradients all but vanish."""

    def __init__(self, inputs: int = 16, classes: int = 4) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(7)
        shapes = ((inputs, 32), (32, 32), (32, classes))
        self.layers = nn.ParameterList(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)

    def forward(self, x: Tensor) -> Tensor:
        hidden = (2 * (x.flatten(1) - 0.5) @ self.layers[0]).tanh()
        return (0.5 * hidden @ self.layers[1]).tanh() @ self.layers[2]


def plain_walk(model: nn.Module, image: Tensor, label: int, target: int, threat: ThreatModel, steps: int) -> list[Tensor]:
    """The authors' loop on one image towards one class: every point that it looks at, in order."""
    z, points = image, []
    for _ in range(steps):
        points.append(z)
        z = z.detach().requires_grad_()
        logits = model(z)[0]
        height = logits[target] - logits[label]
        (normal,) = torch.autograd.grad(height, z)
        z, height = z.detach(), height.detach()
        offset = (normal * z).sum() - height
        way_here = way_to_hyperplane(z, normal, (offset - (normal * z).sum()).view(1), threat)
        way_there = way_to_hyperplane(image, normal, (offset - (normal * image).sum()).view(1), threat)
        here, there = (float(balls.distance(way, threat.norm)) for way in (way_here, way_there))
        alpha = min(here / max(here + there, 1e-300), 0.1)
        z = ((1 - alpha) * (z + 1.05 * way_here) + alpha * (image + 1.05 * way_there)).clamp(0, 1)
        points.append(z)
        if model(z)[0].argmax() != label:
            z = image + 0.9 * (z - image)
    return points


@pytest.mark.parametrize("norm", NORMS)
def test_every_step_sets_out_from_where_it_linearises(norm):
    """On a masked net: all points that are looked at are those of the authors' loop, and the nearest adversarial is kept."""
    model, x, threat, steps = Steep(), images(8), ThreatModel(norm, None), 25
    y = model(x).argmax(dim=1)
    target = model(x).topk(2, dim=1).indices[:, 1]
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))
    x_adv, access = attacked(FABT(steps=steps, targets=1), model, x, y, threat)
    hook.remove()
    looked = torch.stack(seen[1:], dim=1)  # the first look finds the class to go to
    assert access.ledger.forwards.tolist() == [1 + 2 * steps] * len(x)
    broken = 0
    for row in range(len(x)):
        points = torch.cat(plain_walk(model, x[row : row + 1], int(y[row]), int(target[row]), threat, steps))
        torch.testing.assert_close(looked[row], points, rtol=0, atol=1e-7)
        wrong = model(points).argmax(dim=1) != y[row]
        if wrong.any():
            broken += 1
            nearest = balls.distance(points[wrong] - x[row], norm).min()
            torch.testing.assert_close(balls.distance(x_adv[row : row + 1] - x[row], norm)[0], nearest, rtol=1e-6, atol=1e-9)
    assert broken >= 6


@pytest.mark.parametrize("make", [FAB, FABT])
@pytest.mark.parametrize("norm", NORMS)
def test_without_gradients_the_image_comes_back(make, norm):
    class Constant(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.flatten(1)[:, :4] * 0 + torch.tensor([1e30, 0.0, 0.0, 1.0])

    x = images(3).float()
    x_adv, _ = attacked(make(steps=3), Constant(), x, torch.zeros(3, dtype=torch.int64), ThreatModel(norm, None))
    assert torch.equal(x_adv, x)


@pytest.mark.parametrize("make", [FAB, FABT])
def test_a_targeted_goal_is_reached(make, linear):
    model, x = planes(linear, 5), images(8)
    y = model(x).argmax(dim=1)
    target = (y + 2) % 5
    with WhiteBox(model, rng(8)) as access:
        x_adv = make(steps=60)(access, x, Targeted(y, target), ThreatModel("l2", None, box=None), rng(8))
    assert (model(x_adv).argmax(dim=1) == target).all()


def test_bad_arguments_are_named():
    for arguments, name in (({"steps": 0}, "steps"), ({"targets": -1}, "targets"), ({"alpha_max": 2}, "alpha_max")):
        with pytest.raises(ValueError, match=f"Expected `{name}`"):
            FAB(**arguments)
