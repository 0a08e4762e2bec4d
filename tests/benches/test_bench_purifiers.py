"""What purification costs: ``pytest tests/benches --benchmark-enable -s`` prints the table of ratios and of memory.

The bar is 1.2 times the passes of the purifier's own networks.
"""

import importlib
import sys
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from advbench.benches import bench
from advbench.benches.purification import CASES, SHAPE, defense_gan_case, malade_case
from advbench.benches.purifiers import STEPS, printed_ratio
from advbench.clocks import device_name, single_thread
from advbench.defenses.inference.denoiser import Denoiser
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


@pytest.mark.parametrize("steps", STEPS)
def test_the_passes_of_the_benchs_steps_are_those_of_the_floor_on_one_image(steps):
    networks = {"malade": Denoiser(SHAPE), "defense-gan": convolutional_generator(SHAPE, width=1)}
    wanted = {"malade": [steps, steps, 0], "defense-gan": [steps + 1, steps + 1, steps]}
    for purifier, net in networks.items():
        case = CASES[purifier](net.requires_grad_(False), steps, 1, CPU)
        assert passes(net, case.clean) == passes(net, case.floor) == wanted[purifier]


KEPT = """
def kept(mebibytes):
    bytearray(mebibytes * 2**21)
    return lambda: len(bytearray(b"1") * (mebibytes * 2**20))
"""


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """Makes a call that holds so much memory; at its start twice as much was held and is free again.

    It stands in a module on the search path: a new process cannot import the module of a test.
    """
    (tmp_path / "kept_memory.py").write_text(KEPT)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("kept_memory").kept
    del sys.modules["kept_memory"]


@pytest.mark.parametrize("mebibytes", [8, 48])
def test_the_memory_of_a_call_is_what_it_holds_beyond_the_start(kept, mebibytes):
    assert bench.fresh_peak_bytes(partial(kept, mebibytes), CPU) / 2**20 == pytest.approx(mebibytes, abs=2)


def test_the_table_has_the_milliseconds_of_an_image_where_images_are_counted():
    row = bench.BenchRow(
        case="a", measure="b", device="c", against="d", seconds=0.5, reference_seconds=0.25, peak_bytes=2**21
    )
    assert "ms an image" not in bench.table([row])
    header, _, counted, other = bench.table([replace(row, images=20), row]).splitlines()
    assert [cell.strip() for cell in header.split("|")[-3:-1]] == ["peak MiB", "ms an image"]
    assert [cell.strip() for cell in counted.split("|")[-3:-1]] == ["2.0", "25"]
    assert [cell.strip() for cell in other.split("|")[-3:-1]] == ["2.0", ""]


def test_the_papers_ratios_are_those_of_table_6():
    assert [printed_ratio(steps) for steps in (10, 25, 50)] == pytest.approx([5.375, 4.375, 4.893], abs=1e-3)


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
        rows = measured.pedantic(lambda: list(bench.run("purifiers", device)), rounds=1, iterations=1)
    print(f"\n{device_name(device)}\n\n{bench.table(rows)}")
    missed = [f"{row.case}, {row.measure}: {row.ratio:.2f} over {row.bar:g}" for row in rows if not row.holds]
    assert not missed, "; ".join(missed)
