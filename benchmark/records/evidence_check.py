"""Check a number of an advbench board without advbench: its numbers again, by PyTorch and NumPy alone.

Usage: python verify.py FILE.py:FACTORY [--weights FILE] [--batch 64]

FACTORY returns the model, an nn.Module from images (n, c, h, w) to logits (n, classes). FILE may be a TorchScript file
(.ts) or a saved torch.export program (.pt2) instead. --weights: a state dict for the model, .pt or .safetensors.
Every adversarial image must be inside the ball around its clean image and inside the box. Prints accuracy on the clean
images and on the adversarial ones beside the claims. Exit codes: 0 these stand, 1 they do not, 2 bad input.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

SLACK = 1e-5
"""Relative rounding of a distance that a perturbation may have."""
CLOSE = 1e-4
"""A margin below this share of the image's largest logit may flip on another machine."""


def refuse(message: str) -> NoReturn:
    """Say what was wrong and stop."""
    print(f"verify: {message}", file=sys.stderr)
    raise SystemExit(2)


def model_of(target: str, weights: str | None) -> torch.nn.Module:
    """The model in evaluation mode."""
    model: torch.nn.Module
    if target.endswith(".ts"):
        model = torch.jit.load(target, map_location="cpu")  # type: ignore[no-untyped-call]
    elif target.endswith(".pt2"):
        return torch.export.load(target).module()
    else:
        file, _, factory = target.rpartition(":")
        spec = importlib.util.spec_from_file_location("target", file) if Path(file).is_file() else None
        if spec is None or spec.loader is None:
            refuse(f"Expected FILE.py:FACTORY, a .ts or a .pt2 file, got {target}")
        module = importlib.util.module_from_spec(spec)
        sys.path.insert(0, str(Path(file).resolve().parent))
        spec.loader.exec_module(module)
        model = getattr(module, factory)()
    if weights is not None and weights.endswith(".safetensors"):
        from safetensors.torch import load_file

        model.load_state_dict(load_file(weights))
    elif weights is not None:
        model.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    return model.eval()


def answers(
    model: torch.nn.Module, x: NDArray[np.float32], y: NDArray[np.int64], batch: int
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which images are classified right, and which are too close to call, (n,) bool each."""
    right, close = [], []
    with torch.no_grad():
        for start in range(0, len(x), batch):
            logits = model(torch.from_numpy(x[start : start + batch])).double()
            label = torch.from_numpy(y[start : start + batch])
            own = logits.gather(1, label[:, None]).squeeze(1)
            margin = own - logits.scatter(1, label[:, None], -torch.inf).amax(dim=1)
            right.append((logits.argmax(dim=1) == label).numpy())
            close.append((margin.abs() <= CLOSE * logits.abs().amax(dim=1)).numpy())
    return np.concatenate(right), np.concatenate(close)


def distances(delta: NDArray[np.float64], norm: str) -> NDArray[np.float64]:
    """The sizes of perturbations (n, c, h, w), (n,), in float64."""
    order = {"linf": np.inf, "l2": 2, "l1": 1}[norm]
    return np.asarray(np.linalg.norm(delta.reshape(len(delta), -1), ord=order, axis=1), dtype=np.float64)


def main() -> int:
    """Check the evidence beside this file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", metavar="FILE.py:FACTORY")
    parser.add_argument("--weights", metavar="FILE")
    parser.add_argument("--batch", type=int, default=64, help="images per pass")
    given, folder = parser.parse_args(), Path(__file__).parent
    claim = json.loads((folder / "evidence.json").read_text())
    arrays = np.load(folder / "evidence.npz", allow_pickle=False)
    x, x_adv, y = arrays["x"], arrays["x_adv"], arrays["y"]
    if x.shape != x_adv.shape or y.shape != (claim["n"],) or len(x) != claim["n"]:
        refuse(f"Expected {claim['n']} images with labels in evidence.npz, got {x.shape}, {x_adv.shape}, {y.shape}")
    moved, radius, box = distances(x_adv.astype(np.float64) - x, claim["norm"]), claim["epsilon"], claim["box"]
    outside = ~(moved <= radius * (1 + SLACK))
    if box is not None:
        outside |= ((x_adv < box[0] - 1e-6) | (x_adv > box[1] + 1e-6)).reshape(len(x), -1).any(axis=1)
    if outside.any() or not np.isfinite(x_adv).all():
        print(f"{outside.sum()} of {len(x)} images are outside {claim['norm']} {radius:g} or the box: nothing counts")
        return 1
    model = model_of(given.target, given.weights)
    clean, clean_close = answers(model, x, y, given.batch)
    under, close = answers(model, x_adv, y, given.batch)
    stands = True
    rows = (("clean", clean, clean_close, "clean_correct"), ("robust", clean & under, clean_close | close, "robust_correct"))
    for name, right, unsure, key in rows:
        low, high = int((right & ~unsure).sum()), int((right | unsure).sum())
        agrees = low <= claim[key] <= high and high - low <= max(1, len(x) // 100)  # of many such, any claim would stand
        stands &= agrees
        told = f", {high - low} too close to call" if high > low else ""
        print(f"{name}: {right.sum()} of {len(x)} right{told}; claimed {claim[key]}: {'stands' if agrees else 'does not'}")
    return 0 if stands else 1


if __name__ == "__main__":
    sys.exit(main())
