"""What purification costs: ``pytest tests/benches --benchmark-enable -s`` prints the table of ratios.

The bar is 1.2 times the passes of the purifier's own networks.
"""

import pytest
import torch
from torch import nn

from advbench import benches
from advbench.clocks import device_name, single_thread
from advbench.defenses.inference.denoiser import Denoiser
from advbench.purification import SHAPE, defense_gan_case, malade_case
from advbench.zoo.architectures.defense_gan import convolutional_generator

CPU = torch.device("cpu")


def passes(network: nn.Module, call) -> list[int]:
    """Rows of each forward of `network` in a call, and how often a gradient came back to it."""
    rows, backwards = [], 0

    def back(*_):
        nonlocal backwards
        backwards += 1

    def forward(_module, inputs, output):
        rows.append(len(inputs[0]))
        if output.requires_grad:
            output.register_hook(back)

    handle = network.register_forward_hook(forward)
    try:
        call()
    finally:
        handle.remove()
    return [len(rows), sum(rows), backwards]


def test_each_floor_is_the_passes_that_the_purifier_makes():
    denoiser, generator = Denoiser(SHAPE), convolutional_generator(SHAPE, width=2)
    nn.ModuleList([denoiser, generator]).requires_grad_(False)
    malade, gan = malade_case(denoiser, 4, 3, CPU), defense_gan_case(generator, 5, 3, CPU)
    assert passes(denoiser, malade.clean) == passes(denoiser, malade.floor) == [4, 12, 0]
    assert passes(generator, gan.clean) == passes(generator, gan.floor) == [6, 18, 5]


@pytest.fixture
def measured(request):
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("a measurement: run with --benchmark-enable")
    return request.getfixturevalue("benchmark")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_purifiers_beside_their_own_networks(measured, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device(device)
    with single_thread():
        rows = measured.pedantic(lambda: list(benches.run("purifiers", device)), rounds=1, iterations=1)
    print(f"\n{device_name(device)}\n\n{benches.table(rows)}")
    missed = [f"{row.case}, {row.measure}: {row.ratio:.2f} over {row.bar:g}" for row in rows if not row.holds]
    assert not missed, "; ".join(missed)
