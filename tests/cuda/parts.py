"""The parts of a device's record: functions of the device, and of whether it is a rehearsal, that yield rows as measured."""

from __future__ import annotations

import dataclasses
import importlib.util
import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from advbench import conformance
from advbench.attacks import ATTACKS
from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.benches import bench
from advbench.benches.covariance import CASES as COVARIANCES
from advbench.benches.covariance import CovarianceCase
from advbench.benches.jacobian import CASES as LAYERS
from advbench.conformance import Net, images, labels, run
from advbench.defenses.defended import Surrogate
from advbench.defenses.kernels.covariance_operator import quadratic_form
from advbench.devices import traits
from advbench.registry.specs import Spec
from advbench.tasks.compiling import BACKEND, check_compiler, compiled
from advbench.tasks.precision import in_precision, products
from advbench.zoo.architectures.wong2018 import small
from advbench.zoo.training import seeded

Row = dict[str, object]

PEERS = {"pyautoattack": "pyautoattack", "foolbox": "foolbox", "torchattacks": "torchattacks", "adv_lib": "adv-lib"}
"""Peer libraries by the module that shows whether one is installed."""


def contract(device: torch.device, rehearsed: bool) -> Iterator[Row]:
    """Every attack in every norm: whether its images lie on the device, and how many are those of the processor."""
    for name in list(ATTACKS)[:: 9 if rehearsed else 1]:
        attack = conformance.shortened(Spec(name))
        for norm in sorted(attack.norms):
            model, x = Net(), images(6)
            y, threat = labels(model, x, wrong=(1,)), conformance.threat_of(attack, norm)
            expected = run(attack, model, x, Untargeted(y), threat)
            index = torch.arange(len(x), device=device)
            there = run(attack, model.to(device), x.to(device), Untargeted(y.to(device)), threat, index=index)
            near = (there.cpu() - expected).flatten(1).abs().amax(dim=1) <= 1e-4
            alike = f"{int(near.sum())} of 6"
            yield {"attack": name, "norm": norm, "on the device": there.device == device, "alike": alike}


def of_bench(name: str) -> Callable[[torch.device, bool], Iterator[Row]]:
    """The part that is a bench: its rows, the first few in a rehearsal."""

    def part(device: torch.device, rehearsed: bool) -> Iterator[Row]:
        for row in itertools.islice(bench.run(name, device), 2 if rehearsed else None):
            yield dataclasses.asdict(row) | {"ratio": row.ratio, "holds": row.holds}

    return part


def passes(device: torch.device, rehearsed: bool) -> Iterator[Row]:
    """A forward and backward of a convnet, eager and compiled, in each precision: milliseconds, and peak memory."""
    batch = 8 if rehearsed else 128 if traits(device).host else 1024
    with seeded(0):
        model = small((1, 28, 28), 10)
    index = torch.arange(batch, device=device)
    x, goal = ExampleRNG.make(0, "record", index).uniform((1, 28, 28)), Untargeted(torch.zeros_like(index))
    for how, precision in itertools.product(("eager", "compiled"), ("float32", "tf32", "bfloat16")):
        if rehearsed and (how, precision) != ("eager", "float32"):
            continue
        source = in_precision(Surrogate(model.to(device)), precision)  # type: ignore[arg-type]
        if how == "compiled":
            check_compiler(device)
            source = compiled(source)
        with products(precision), WhiteBox(source.model, ExampleRNG.make(0, "record", index)) as access:  # type: ignore[arg-type]
            ask: Callable[[], object] = lambda access=access: access.loss_gradient(x, goal, cross_entropy).gradient  # noqa: E731
            ask()
            seconds = bench.fastest({"pass": ask}, device, rounds=10, seconds=3)["pass"]
            peak = bench.peak_bytes(ask, device)
        yield {"model": how, "precision": precision, "batch": batch, "ms": 1e3 * seconds, "peak MiB": peak / 2**20}


def covariances(device: torch.device, rehearsed: bool) -> Iterator[Row]:
    """The form g^T S g by FFT with its gradient, eager and compiled: milliseconds, memory, times the bandwidth limit."""
    for how in ("eager", "compiled")[: 2 - rehearsed]:
        for n, shape in COVARIANCES[: 1 if rehearsed else None]:
            case = CovarianceCase.make(n, shape, device)
            form: Callable[[Tensor], Tensor] = lambda g, case=case: quadratic_form(case.spectral, g)  # noqa: E731
            yield {"case": case.name, "model": how, **_kernel(form, (case.g,), case.bytes(True), how, device)}


def jacobians(device: torch.device, rehearsed: bool) -> Iterator[Row]:
    """The squared norms of layer Jacobians with their gradients: as `covariances`."""
    for how in ("eager", "compiled")[: 2 - rehearsed]:
        for make in LAYERS[: 1 if rehearsed else None]:
            with seeded(0, device):
                case = make(device)
            norms: Callable[..., Tensor] = lambda *_, case=case: case.norms()  # noqa: E731
            yield {"case": case.name, "model": how, **_kernel(norms, case.leaves, case.bytes(True), how, device)}


def _kernel(form: Callable[..., Tensor], leaves: tuple[Tensor, ...], moved: int, how: str, device: torch.device) -> Row:
    """What a kernel with its gradient costs; or why it could not be compiled."""
    called = torch.compile(form, backend=BACKEND) if how == "compiled" else form
    leaves = tuple(leaf.requires_grad_() for leaf in leaves)

    def call() -> object:
        return torch.autograd.grad(called(*leaves).mean(), leaves)

    try:
        if how == "compiled":
            check_compiler(device)
        call()
    except Exception as error:  # one kernel that cannot be compiled leaves the others
        return {"reason": f"{type(error).__name__}: {error}".splitlines()[0][:200]}
    seconds = bench.fastest({"kernel": call, "copy": bench.copier(device)}, device, seconds=2)
    limit = moved * seconds["copy"] / bench.COPY_BYTES
    peak = bench.peak_bytes(call, device)
    return {"ms": 1e3 * seconds["kernel"], "times the limit": seconds["kernel"] / limit, "peak MiB": peak / 2**20}


def peers(device: torch.device, rehearsed: bool) -> Iterator[Row]:
    """`auto` beside AutoAttack on a robust convnet at a full batch, the peers' own where they are installed."""
    missing = [name for module, name in PEERS.items() if importlib.util.find_spec(module) is None]
    if missing:
        yield {"attack": ", ".join(missing), "status": "not installed"}
    attacks = "apgd-ce(steps=2)" if rehearsed else "auto,autoattack"
    if not rehearsed and "torchattacks" not in missing:
        attacks += ",torchattacks/AutoAttack"
    yield from _cells(device, rehearsed, attack=attacks, defense="pgd-linf", architecture="wong2018/small")


def table(device: torch.device, rehearsed: bool) -> Iterator[Row]:
    """One cheap table at its full budget: a plain and two robust networks under one-step and iterated attacks, on digits."""
    attacks = "fgsm" if rehearsed else "fgsm,pgd,apgd-ce,fmn"
    yield from _cells(device, rehearsed, attack=attacks, defense="none,robust-linf" if rehearsed else "none,robust-linf,sgr")


def _cells(device: torch.device, rehearsed: bool, **settings: object) -> Iterator[Row]:
    """The cells of a white-box matrix on digits: robust accuracy, seconds, memory, batch."""
    import advbench
    from advbench.results.statistics import robust
    from advbench.results.store import Store

    few = {"n_examples": 8, "train_examples": 60, "epochs": 1} if rehearsed else {}
    with tempfile.TemporaryDirectory() as out:
        done = advbench.run(
            **settings, **few, dataset="digits", matrix="white-box", device=str(device), jobs=1, out=Path(out)
        )
        for key in done.cells:
            record, examples = Store(done.out).read(key), Store(done.out).examples(key)
            row: Row = {"model": record.target["label"], "attack": record.attack["label"], "status": record.status}
            if record.status == "ok":
                row |= {"robust": float(robust(record, examples).mean()), "seconds": record.measured["seconds"]}
                row |= {"peak MiB": record.measured["peak_memory_bytes"] / 2**20, "batch": record.details["compute_batch"]}
            yield row | ({} if record.status == "ok" else {"reason": record.reason})


PARTS: dict[str, tuple[Callable[[torch.device, bool], Iterator[Row]], float]] = {
    "contract": (contract, 0.15),
    "waits": (of_bench("waits"), 0.1),
    "passes": (passes, 0.12),
    "covariances": (covariances, 0.15),
    "jacobians": (jacobians, 0.12),
    "peers": (peers, 0.2),
    "table": (table, 0.15),
    "covariance bench": (of_bench("covariance"), 0.2),
    "jacobian bench": (of_bench("jacobian"), 0.15),
    "purifiers bench": (of_bench("purifiers"), 0.15),
}
"""The parts in order of their worth, each with the largest share of the record's seconds that it may take."""
