"""How often the processor waits for the device in a step of an attack, and that what replaces the waits changes nothing."""

import dataclasses

import pytest
import torch
from torch import nn

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.conformance import Net, images, labels, run
from advbench.registry import registry
from advbench.registry.specs import Spec
from tests.pretend.device import waits

WEAK = {"linf": 0.003, "l2": 0.02, "l1": 0.1, "l0": 1.0}
"""Radii at which some images withstand, so that the last step is reached."""

PER_STEP = {
    ("pgd", "linf"): 1,
    ("pgd", "l2"): 1,
    ("pgd", "l1"): 1,
    ("apgd-ce", "linf"): 1,
    ("apgd-ce", "l2"): 1,
    ("apgd-ce", "l1"): 1,
    ("fmn", "linf"): 1,
    ("fmn", "l2"): 1,
    ("fmn", "l0"): 1,
    ("fmn", "l1"): 1,
    ("ddn", "l2"): 1,
    ("mi-fgsm", "linf"): 1,
}
"""At most so many: whether anyone is left."""


def waited(name, norm, steps, device):
    spec = {"fmn": f"fmn(steps={steps},form='box-aware')"}.get(name, f"{name}(steps={steps})")
    attack, model, x = registry.attacks.create(Spec.parse(spec)), Net(), images(5)
    y = labels(model, x, wrong=())
    threat = ThreatModel(norm, None if attack.minimal_norm else WEAK[norm])
    model, x, goal, index = model.to(device), x.to(device), Untargeted(y.to(device)), torch.arange(5, device=device)
    with waits() as counted:
        run(attack, model, x, goal, threat, index=index)
    return sum(counted.values())


@pytest.mark.parametrize(("name", "norm"), PER_STEP)
def test_a_step_waits_at_most_so_often(device, name, norm):
    few, many = (waited(name, norm, steps, device) for steps in (6, 12))
    assert 0 < (many - few) / 6 <= PER_STEP[name, norm]


class Root(nn.Module):
    """Its slope at black pixels is infinite; two classes."""

    def forward(self, x):
        total = x.flatten(1).sqrt().sum(dim=1)
        return torch.stack((-total, total), dim=1)


def test_gradients_that_are_no_numbers_are_mended_when_they_are_asked_for(device):
    x = torch.full((3, 1, 2, 2), 0.25)
    x[1, 0, 0, 0] = 0
    found = []
    for place in (torch.device("cpu"), device):
        with WhiteBox(Root(), ExampleRNG.make(0, "attack", torch.arange(3, device=place))) as access:
            evaluation = access.loss_gradient(
                x.to(place), Untargeted(torch.zeros(3, device=place).long()), lambda z, _: z[:, 1]
            )
            found.append((evaluation.gradient.cpu(), access.ledger.nonfinite.tolist(), access.ledger.forwards.tolist()))
    assert found[0][1] == found[1][1] == [0, 1, 0]
    assert found[0][2] == found[1][2] == [1, 2, 1]
    assert torch.equal(found[0][0], found[1][0])
    assert found[1][0].isfinite().all()


@pytest.mark.parametrize("norm", ["l2", "l0"])  # in l1 it is another way to the same shift: `tests/attacks/test_balls.py`
@pytest.mark.parametrize("box", [(0.0, 1.0), None])
def test_a_projection_without_questions_is_the_same_to_the_bit(device, norm, box):
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(20, 3, 8, 8, generator=generator)
    # Changes of very different sizes, many of which the box cuts off.
    delta = torch.randn(x.shape, generator=generator).exp() * torch.randn(x.shape, generator=generator)
    x_adv, threat = x + delta, ThreatModel(norm, {"l2": 3.0, "l0": 30.0}[norm], box)
    x_adv[:3] = x[:3] + 1e-4 * delta[:3]
    expected = balls.project(x_adv, x, threat)
    found = balls.project(x_adv.to(device), x.to(device), threat)
    assert torch.equal(found.cpu(), expected)
    assert not balls.violations(found.cpu(), x, dataclasses.replace(threat, box=box)).any()


def test_directions_of_any_magnitude_are_the_same_to_the_bit(device):
    gradient = torch.randn(6, 1, 3, 3, generator=torch.Generator().manual_seed(1))
    gradient[1] *= 1e-30
    gradient[2] *= 1e30
    gradient[3] = 0
    gradient[4, 0, 0, 0] = torch.inf
    gradient[5, 0, 1, 1] = torch.nan
    for norm in ("linf", "l2", "l1"):
        threat = ThreatModel(norm, 0.1)
        assert torch.equal(balls.steepest(gradient.to(device), threat).cpu(), balls.steepest(gradient, threat))
