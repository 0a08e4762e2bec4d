"""How often the processor waits for the device in a step of an attack, and that what replaces the waits changes nothing."""

import dataclasses

import pytest
import torch
from torch import nn

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.benches import waits as bench
from tests.pretend.device import waits

PER_STEP = {
    "pgd": ("linf", "l2", "l1"),
    "apgd-ce": ("linf", "l2", "l1"),
    "apgd-dlr": ("linf", "l2", "l1"),
    "apgd-t": ("linf", "l2", "l1"),
    "fmn": ("linf", "l2", "l1", "l0"),
    "ddn": ("l2",),
    "mi-fgsm": ("linf", "l2"),
}
"""Attacks of which a step asks one thing: whether anyone is left."""
CELLS = [(name, norm) for name, norms in PER_STEP.items() for norm in norms]


def waited(name, norm, steps, device):
    """As the pretend device counts, with what is set up; and the steps."""
    with waits() as found:
        _, passes = bench.attacked(name, norm, {"steps": steps}, device)
    return found.total(), passes


@pytest.mark.parametrize(("name", "norm"), CELLS)
def test_a_step_waits_once(device, name, norm):
    (few, start), (many, end) = (waited(name, norm, steps, device) for steps in (6, 12))
    assert end > start
    assert (many - few) / (end - start) == 1


@pytest.mark.parametrize(
    ("name", "norm"),
    [("pgd", "l1"), ("apgd-ce", "l1"), ("fmn", "l0"), ("ddn", "l2"), ("di-fgsm", "l2"), ("fab-t", "l1")],
)
def test_the_bench_counts_on_the_processor_what_the_device_waits_for(device, name, norm):
    (few, start), (many, end) = (waited(name, norm, steps, device) for steps in (6, 12))
    row = bench.of_attack(name, norm, "steps", torch.device("cpu"))
    assert (row.seconds, row.reference_seconds) == (many - few, end - start)
    assert bench.attacked(name, norm, {"steps": 6}, device) == bench.attacked(name, norm, {"steps": 6}, torch.device("cpu"))


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
