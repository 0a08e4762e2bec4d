"""What layer Jacobians cost: ``pytest tests/benches --benchmark-enable -s`` prints the table of ratios.

The bars are those of the CPU: closed forms within three times the memory-bandwidth limit on the papers' layers, a training
step with the penalty within 1.3 times plain training's.
"""

import pytest
import torch

from advbench.benches import bench
from advbench.clocks import device_name, single_thread


@pytest.fixture
def measured(request):
    if not request.config.getoption("benchmark_enable"):
        pytest.skip("a measurement: run with --benchmark-enable")
    return request.getfixturevalue("benchmark")


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_layer_jacobians_and_training_with_them(measured, device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = torch.device(device)
    with single_thread():
        rows = measured.pedantic(lambda: list(bench.run("jacobian", device)), rounds=1, iterations=1)
    print(f"\n{device_name(device)}\n\n{bench.table(rows)}")
    missed = [f"{row.case}, {row.measure}: {row.ratio:.2f} over {row.bar:g}" for row in rows if not row.holds]
    assert not missed, "; ".join(missed)
