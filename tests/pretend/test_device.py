"""The pretend device itself: as strict as a GPU, and it counts."""

import copy

import pytest
import torch
from torch import nn

from advbench import devices
from advbench.clocks import device_name, resolve_devices, stopwatch
from advbench.plan.compute_batch import ladder_of
from advbench.zoo.training import seeded
from tests.pretend.device import waits


def test_it_computes_what_the_processor_computes(device):
    torch.manual_seed(0)
    net, x = (
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)),
        torch.rand(2, 1, 8, 8),
    )
    twin, there = copy.deepcopy(net).to(device), x.to(device).requires_grad_()
    x.requires_grad_()
    (expected,) = torch.autograd.grad(net(x).square().sum(), x)
    (found,) = torch.autograd.grad(twin(there).square().sum(), there)
    assert found.device == device
    assert all(isinstance(parameter, nn.Parameter) and parameter.device == device for parameter in twin.parameters())
    assert torch.equal(found.cpu(), expected)


def test_tensors_of_two_devices_do_not_meet(device):
    there, here = torch.ones(3, device=device), torch.ones(3)
    for operation in (lambda: there + here, lambda: here.add_(there), lambda: torch.where(there > 0, here, there)):
        with pytest.raises(RuntimeError, match="same device"):
            operation()
    assert (there + torch.tensor(1.0)).tolist() == [2, 2, 2]  # of no dimensions
    assert there[torch.tensor([0, 1])].tolist() == [1, 1]
    with pytest.raises(RuntimeError):
        here[torch.tensor([0, 1], device=device)]
    with pytest.raises((RuntimeError, TypeError), match="numpy"):
        there.numpy()


def test_its_generator_is_not_the_processors(device):
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(2, generator=torch.Generator(), device=device)
    first, second = (torch.rand(4, generator=torch.Generator(device).manual_seed(3), device=device) for _ in range(2))
    assert first.tolist() == second.tolist()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    torch.rand(4, device=device)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("asks", "kinds"),
    [
        (lambda x: x.sum().item(), {"item": 1}),
        (lambda x: bool((x > 0).any()), {"item": 1}),
        (lambda x: (x > 0).nonzero(), {"nonzero": 1}),
        (lambda x: x[x > 0], {"nonzero": 1}),
        (lambda x: x.cpu(), {"copy to cpu": 1}),
        (lambda x: x.tolist(), {"copy to cpu": 1}),
        (lambda x: torch.equal(x, x), {"equal": 1}),
        (lambda x: torch.zeros(3).copy_(x), {"copy to cpu": 1}),
        (lambda x: torch.zeros(3).to(x.device), {"copy to device": 1}),
        (lambda x: torch.zeros(3).to(x.device, non_blocking=True), {}),
        (lambda x: torch.tensor([1.0], device=x.device), {"copy to device": 1}),
        (lambda x: x.masked_fill(x > 0, 2).where(x > 1, x).sum(), {}),
        (lambda x: x[torch.arange(1, device=x.device)], {}),
        (lambda x: len(x) and x.shape, {}),
    ],
)
def test_it_counts_what_the_processor_waits_for(device, asks, kinds):
    x = torch.tensor([1.0, 0.0, 2.0], device=device)
    with waits() as counted:
        asks(x)
    assert dict(counted) == kinds


def test_it_is_one_row_of_the_table_of_devices(device):
    assert [str(found) for found in resolve_devices("pretend")] == ["pretend:0"]
    assert [str(found) for found in resolve_devices("auto")] == ["cuda:0" if torch.cuda.is_available() else "pretend:0"]
    with pytest.raises(ValueError, match="1 of pretend found"):
        resolve_devices("pretend:1")
    with pytest.raises(ValueError, match="one type"):
        resolve_devices("pretend,cpu")
    assert device_name(device) == "a pretended device"
    assert device in list(devices.accelerators())
    assert ladder_of(device).start == 256
    assert ladder_of(torch.device("cpu")).start == 1
    with stopwatch(device) as measured:
        torch.ones(3, device=device).sum()
    assert measured.seconds > 0
    assert measured.peak_memory_bytes == 1  # what its allocator says


def test_seeded_covers_its_generator_and_puts_it_back(device):
    def draw():
        return torch.rand(3, device=device).tolist(), torch.rand(3).tolist()

    before = torch.pretend.get_rng_state(), torch.get_rng_state()
    with seeded(5, device):
        first = draw()
    draw()
    torch.pretend.set_rng_state(before[0])
    with seeded(5, device):
        assert draw() == first
    assert torch.equal(torch.pretend.get_rng_state(), before[0])
