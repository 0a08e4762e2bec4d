"""What is to be known of a device, measured and written as one JSON and one Markdown record: see `run.sh` beside it."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from tabulate import tabulate

from advbench import devices
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted
from advbench.benches import bench
from advbench.clocks import device_name, environment, resolve_devices, single_thread, stopwatch
from advbench.conformance import Net, images, labels, run
from advbench.defenses.defended import Surrogate
from advbench.registry.specs import Spec
from advbench.tasks.compiling import check_compiler, compiled
from advbench.zoo.architectures.wong2018 import small
from advbench.zoo.training import seeded

Rows = list[dict[str, object]]


def contract(device: torch.device) -> Rows:
    """Every attack in every norm: whether its images lie on the device, and how many are those of the processor."""
    from advbench import conformance
    from advbench.attacks import ATTACKS

    found: Rows = []
    for name in ATTACKS:
        attack = conformance.shortened(Spec(name))
        for norm in sorted(attack.norms):
            model, x = Net(), images(6)
            y, threat = labels(model, x, wrong=(1,)), conformance.threat_of(attack, norm)
            expected = run(attack, model, x, Untargeted(y), threat)
            index = torch.arange(len(x), device=device)
            there = run(attack, model.to(device), x.to(device), Untargeted(y.to(device)), threat, index=index)
            near = (there.cpu() - expected).flatten(1).abs().amax(dim=1) <= 1e-4
            found.append(
                {"attack": name, "norm": norm, "on the device": there.device == device, "alike": f"{int(near.sum())} of 6"}
            )
    return found


def kernels(device: torch.device, names: tuple[str, ...], until: float) -> Rows:
    """The rows of `advbench bench`, as long as there is time."""
    found: Rows = []
    for name in names:
        for row in bench.run(name, device):
            found.append(dataclasses.asdict(row) | {"bench": name, "ratio": row.ratio, "holds": row.holds})
            if time.monotonic() > until:
                return found
    return found


def passes(device: torch.device, batch: int) -> Rows:
    """A forward and backward of a convnet, eager and compiled, in each precision: milliseconds, and peak memory."""
    from advbench.attacks.access import WhiteBox
    from advbench.attacks.threat import cross_entropy
    from advbench.tasks.precision import in_precision, products

    with seeded(0):
        model = small((1, 28, 28), 10)
    index = torch.arange(batch, device=device)
    x, goal = ExampleRNG.make(0, "record", index).uniform((1, 28, 28)), Untargeted(torch.zeros_like(index))
    found: Rows = []
    for precision in ("float32", "tf32", "bfloat16"):
        for how in ("eager", "compiled"):
            source = in_precision(Surrogate(model.to(device)), precision)  # type: ignore[arg-type]
            if how == "compiled":
                try:
                    check_compiler(device)
                except ValueError as error:
                    found.append({"precision": precision, "model": how, "reason": str(error)})
                    continue
                source = compiled(source)
            with products(precision), WhiteBox(source.model, ExampleRNG.make(0, "record", index)) as access:  # type: ignore[arg-type]
                ask: Callable[[], object] = lambda access=access: access.loss_gradient(x, goal, cross_entropy).gradient  # noqa: E731
                ask()
                seconds = bench.fastest({"pass": ask}, device, rounds=10, seconds=3)["pass"]
                peak = bench.peak_bytes(ask, device)
            found.append(
                {"precision": precision, "model": how, "batch": batch, "ms": 1e3 * seconds, "peak MiB": peak / 2**20}
            )
    return found


def table(device: torch.device, out: Path, few: bool) -> Rows:
    """One cheap table: `auto` beside AutoAttack on a robust convnet at full batch, and the seconds of each."""
    import advbench
    from advbench.results.store import Store

    settings: dict[str, object] = {"n_examples": 64, "train_examples": 300, "epochs": 2} if few else {}
    attack = "apgd-ce(steps=10)" if few else "auto,autoattack"
    settings |= {"dataset": "digits", "matrix": "white-box", "architecture": "wong2018/small", "defense": "pgd-linf"}
    done = advbench.run(**settings, attack=attack, device=str(device), jobs=1, out=out / "table")
    found: Rows = []
    for key in done.cells:
        record, examples = Store(done.out).read(key), Store(done.out).examples(key)
        row = {"model": record.target["label"], "attack": record.attack["label"], "status": record.status}
        if record.status == "ok":
            row |= {"robust": float(examples.report_correct.mean()), "seconds": record.measured["seconds"]}
            row |= {"peak MiB": record.measured["peak_memory_bytes"] / 2**20, "batch": record.details["compute_batch"]}
        found.append(row)
    return found


def clocks() -> str:
    """What nvidia-smi says of name, driver, clocks and memory; empty without it."""
    asked = "--query-gpu=name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,memory.total,power.limit"
    try:
        done = subprocess.run(["nvidia-smi", asked, "--format=csv"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()


def measure(device: torch.device, out: Path, seconds: float) -> dict[str, object]:
    """All parts in order of their worth, each with what went wrong in it; one that would begin too late is left out."""
    start, few = time.monotonic(), devices.traits(device).host
    parts: dict[str, Callable[[], Rows]] = {
        "contract": lambda: contract(device),
        "waits": lambda: kernels(device, ("waits",), start + 0.3 * seconds),
        "passes": lambda: passes(device, 128 if few else 1024),
        "kernels": lambda: kernels(device, ("covariance", "jacobian"), start + 0.6 * seconds),
        "table": lambda: table(device, out, few),
        "purifiers": lambda: kernels(device, ("purifiers",), start + 0.95 * seconds),
    }
    found: dict[str, object] = {
        "device": device_name(device),
        "kind": device.type,
        "cores": os.cpu_count(),
        "load": os.getloadavg()[0],
        "clocks": clocks(),
        "environment": environment(),
        "torch threads": 1,
    }
    for name, part in parts.items():
        if time.monotonic() - start > 0.9 * seconds:
            found[name] = {"left out": "no time left"}
            continue
        with stopwatch(device) as watch:
            try:
                found[name] = {"rows": part()}
            except Exception as error:  # one part that fails leaves the others
                found[name] = {"error": f"{type(error).__name__}: {error}"}
        found[name] |= {"seconds": watch.seconds}  # type: ignore[operator]
        write(found, out)
        print(f"{name}: {watch.seconds:.0f} s", file=sys.stderr, flush=True)
    return found


def write(found: dict[str, object], out: Path) -> None:
    """The record as JSON, and as tables."""
    (out / "record.json").write_text(json.dumps(found, indent=1, default=str) + "\n")
    lines = [f"# {found['device']}", ""]
    for name, value in found.items():
        if not isinstance(value, dict) or name == "environment":
            lines += [f"- {name}: {json.dumps(value, default=str)}"]
            continue
        rows = value.get("rows", [])
        lines += ["", f"## {name} ({value.get('seconds', 0):.0f} s)", ""]
        lines += [tabulate(rows, headers="keys", tablefmt="github", floatfmt=".4g")] if rows else []
        lines += [text for text in (value.get("error"), value.get("left out")) if text]
    (out / "record.md").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--out", type=Path, default=Path("advbench-out/device"))
    parser.add_argument("--seconds", type=float, default=480)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    with single_thread():
        write(measure(resolve_devices(given.device)[0], given.out, given.seconds), given.out)
