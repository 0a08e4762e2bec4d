"""``python -m tests.scale.speedups jobs|verdict [IMAGES]``, from the root of the repository on an idle machine of two cores.

``jobs``: one attack on one model by one worker and by two, in turn. ``verdict``: `auto` by two workers beside pyautoattack's
standard AutoAttack on two threads. Both on the gauntlet's LeNet, trained by PGD at linf 0.3, and 500 test images of MNIST
that it gets right, or fewer. Whole processes are timed, with their start and the reports; from ``advbench evaluate`` what it
takes with FGSM in place of `auto` is subtracted, as it draws a curve by a minimal-norm attack that the peer has not.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from tests.gauntlet.models import recipe_of
from tests.gauntlet.training import model_of, problem

ROOT = Path(__file__).resolve().parents[2]
NET = """
from tests.gauntlet.networks import lenet


def make():
    return lenet((1, 28, 28), 10, "relu")
"""
PEER = """
import sys
import numpy as np, torch
from pyautoattack import AutoAttack
from tests.gauntlet.networks import lenet

torch.set_num_threads(2)
model = lenet((1, 28, 28), 10, "relu")
model.load_state_dict(torch.load("weights.pt", weights_only=True))
model.eval()
data = np.load("images.npz")
x, y = torch.from_numpy(data["x_test"]), torch.from_numpy(data["y_test"])
attack = AutoAttack(model, norm="Linf", eps=0.3, version="standard", device="cpu", seed=0)
x_adv = attack.run_standard_evaluation(x, y, batch_size=250)
if isinstance(x_adv, tuple):
    x_adv = x_adv[0]
with torch.no_grad():
    right = (model(x_adv).argmax(dim=1) == y) | ((x_adv - x).abs().amax(dim=(1, 2, 3)) > 0.3 + 1e-6)
print("robust", right.double().mean().item())
"""


def prepare(folder: Path, images: int) -> None:
    """The net, its weights, and the images, as a user has them."""
    recipe = recipe_of("lenet")
    faced = problem(recipe)
    (folder / "net.py").write_text(NET)
    (folder / "peer.py").write_text(PEER)
    torch.save(model_of(recipe).state_dict(), folder / "weights.pt")
    x, y = faced.x.numpy(), faced.y.numpy()
    np.savez(folder / "images.npz", x_train=x, y_train=y, x_test=x[:images], y_test=y[:images])


def timed(folder: Path, *command: str) -> tuple[float, str]:
    """Seconds of a process, and what it printed, with its seconds of processor. RuntimeError if it fails."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ADVBENCH_CACHE": str(folder / "cache")}
    environment.pop("OMP_NUM_THREADS", None)
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stdout + done.stderr)
    seconds, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    print(f"{command[1:4]}: {seconds:.1f} s, {processor:.1f} s of processor", flush=True)
    return seconds, done.stdout


def evaluated(folder: Path, attack: str, jobs: int) -> tuple[float, float]:
    """Seconds and robust accuracy of ``advbench evaluate``."""
    settings = ["--dataset", "npz:images.npz", "--weights", "weights.pt", "--norm", "linf", "--epsilon", "0.3"]
    settings += ["--attack", attack, "--jobs", str(jobs), "--device", "cpu", "--fresh", "--json", "result.json"]
    seconds, _ = timed(folder, sys.executable, "-m", "advbench", "evaluate", "net.py:make", *settings)
    result = json.loads((folder / "result.json").read_text())
    return seconds, result["robust"]["value"]


def jobs(folder: Path) -> None:
    """One worker beside two."""
    attack = "pgd(steps=400,stop='never')"
    evaluated(folder, "fgsm", 1)  # measures the batch
    for _ in range(2):
        (alone, one), (both, two) = evaluated(folder, attack, 1), evaluated(folder, attack, 2)
        print(f"{attack}: {alone:.1f} s with one job, {both:.1f} s with two: {alone / both:.2f}; robust {one:.3f} {two:.3f}")


def verdict(folder: Path) -> None:
    """`auto` beside the peer."""
    evaluated(folder, "fgsm", 1)  # measures the batch
    curve, _ = evaluated(folder, "fgsm", 2)
    seconds, robust = evaluated(folder, "auto", 2)
    seconds -= curve
    print(f"auto: {seconds:.1f} s, robust {robust:.3f}", flush=True)
    theirs, said = timed(folder, sys.executable, "peer.py")
    print(f"pyautoattack: {theirs:.1f} s, {said.splitlines()[-1]}; ratio {theirs / seconds:.2f}")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        prepare(Path(name), int(sys.argv[2]) if len(sys.argv) > 2 else 500)
        {"jobs": jobs, "verdict": verdict}[sys.argv[1]](Path(name))
