"""How often the processor waits for an accelerator in a step of each attack and of each training: ``advbench bench waits``.

Every wait empties the queue of what the accelerator has to do. On CUDA torch's debugging mode tells of each. Elsewhere they
are counted as torch is asked (`question`), and on the processor attacks take the way that they take on an accelerator
(`attacks.waiting.sparing`), so that the count is known without one. What only CUDA's own count shows: a blocking copy of a
tensor to the device, and what is asked inside a backward pass that runs in another thread.

A step of an attack is one backward pass of the example that takes the most, or one query of an attack without gradients: the
waits of a longer run less those of a shorter one, over the steps between them. An attack that ends on its own before the
longer run does has the waits of that run, its start and end included.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from advbench.attacks.attack import Attack
from advbench.attacks.capabilities import ENSEMBLE, family_of
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Norm, ThreatModel, Untargeted
from advbench.attacks.waiting import sparing
from advbench.benches import training
from advbench.benches.bench import BenchRow
from advbench.clocks import device_name
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.training import seeded

_FromTorch: TypeAlias = Any
"""A function of torch, its arguments or its answer, as torch hands them to a mode."""

NETWORK = "gu2014/n100-100-10"
SHAPE = (1, 8, 8)
IMAGES = 8

WEAK: dict[Norm, float] = {"linf": 0.003, "l2": 0.02, "l1": 0.1, "l0": 1.0}
"""Radii at which images withstand, so that an attack takes all its steps."""

ONCE = ("pgd", "apgd-ce", "apgd-dlr", "apgd-t", "fmn", "ddn", "mi-fgsm")
"""Attacks of which a step may ask one thing: whether anyone is left."""

LENGTHS = {"steps": (6, 12), "queries": (60, 120)}
"""The arguments that lengthen an attack, and a shorter and a longer run."""

_OPEN: dict[str, dict[str, float]] = {"lbfgs": {"c": 1.0}}
"""Arguments that would have to be found on held-out images."""

_WAITING = {
    "aten::_local_scalar_dense": "item",
    "aten::nonzero": "nonzero",
    "aten::masked_select": "nonzero",
    "aten::equal": "equal",
    "aten::allclose": "equal",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::unique_consecutive": "unique",
    "aten::bincount": "bincount",
    "aten::repeat_interleave": "repeat_interleave",
}
"""Operations after which the processor needs a number of the device's, and the names by which they are counted."""

_INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_"}
_LEAVING = {Tensor.cpu, Tensor.tolist}
_ARRIVING = {torch.tensor, torch.as_tensor, Tensor.new_tensor}


def question(func: _FromTorch, args: _FromTorch) -> str | None:
    """What the processor asks an accelerator by an operation of torch, such as ``item`` or ``nonzero``; None if nothing.

    func: an overload, such as ``torch.ops.aten.nonzero.default``; args: its positional arguments. Copies are no operations
    that ask.

    >>> question(torch.ops.aten.nonzero.default, (torch.ones(2),)), question(torch.ops.aten.abs.default, (torch.ones(2),))
    ('nonzero', None)
    """
    name = func._schema.name
    if name in _INDEXING:
        masks = [each for each in args[1] if isinstance(each, Tensor) and each.dtype == torch.bool]
        filled = name != "aten::index" and len(masks) == 1 and args[2].numel() == 1
        return "nonzero" if masks and not filled else None
    return _WAITING.get(name)


@contextmanager
def counted(device: torch.device) -> Iterator[Counter[str]]:
    """Count how often the processor waits for `device` inside, by kind; on the processor, how often it would.

    >>> with counted(torch.device("cpu")) as waits:
    ...     found = torch.ones(2).sum().item()
    >>> dict(waits)
    {'item': 1}
    """
    waits: Counter[str] = Counter()
    if device.type != "cuda":
        with sparing(), _Calls(waits, device), _Operations(waits, device):
            yield waits
        return
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            yield waits
    finally:
        torch.cuda.set_sync_debug_mode("default")
    waits["synchronisation"] += sum("synchroniz" in str(one.message) for one in told)


class _Calls(TorchFunctionMode):
    """Counts the calls by which a tensor of the device comes to the processor, or numbers of the processor to the device."""

    def __init__(self, waits: Counter[str], device: torch.device) -> None:
        super().__init__()
        self.waits, self.kind = waits, device.type

    def __torch_function__(
        self, func: _FromTorch, types: _FromTorch, args: _FromTorch = (), kwargs: _FromTorch = None
    ) -> _FromTorch:
        given = kwargs or {}
        if func in _LEAVING and args[0].device.type == self.kind:
            self.waits["copy to cpu"] += 1
        elif func in _ARRIVING:
            target = given.get("device", args[0].device if func is Tensor.new_tensor else None)
            self.waits["copy to device"] += target is not None and torch.device(target).type == self.kind
        return func(*args, **given)


class _Operations(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations on tensors of the device after which the processor needs to know a number."""

    def __init__(self, waits: Counter[str], device: torch.device) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.waits, self.kind = waits, device.type

    def __torch_dispatch__(
        self, func: _FromTorch, types: _FromTorch, args: _FromTorch = (), kwargs: _FromTorch = None
    ) -> _FromTorch:
        kind = question(func, args)
        if kind is not None and args[0].device.type == self.kind:
            self.waits[kind] += 1
        return func(*args, **(kwargs or {}))


def rows(device: torch.device) -> Iterator[BenchRow]:
    """A row for each attack that can be lengthened in each of its norms, and for a step of each training-time defense."""
    for name in registry.attacks.names():
        attack = registry.attacks.create(Spec(name))
        length = next((each for each in LENGTHS if hasattr(attack, each)), None)
        if length is not None and family_of(attack) != ENSEMBLE:
            for norm in (each for each in WEAK if each in attack.norms):
                yield of_attack(name, norm, length, device)
    for name, defense in training.defenses().items():
        step = training.stepper(defense, NETWORK, device, moving=False)
        step()
        yield _row(f"{NETWORK}, {name}", "waits, training step", _waits_of(step, device), 1, device, None)


def of_attack(name: str, norm: Norm, length: str, device: torch.device) -> BenchRow:
    """The row of one attack in one norm. length: the argument that lengthens it, of `LENGTHS`."""
    (few, start), (many, end) = (attacked(name, norm, {length: value}, device) for value in LENGTHS[length])
    waits, steps = (many - few, end - start) if end > start else (many, end)
    return _row(f"{name}, {norm}", "waits, attack", waits, steps, device, 1.0 if name in ONCE else None)


def _row(case: str, measure: str, waits: int, steps: int, device: torch.device, bar: float | None) -> BenchRow:
    return BenchRow(
        case=case,
        measure=measure,
        device=device_name(device),
        against="a step",
        seconds=waits,
        reference_seconds=steps,
        bar=bar,
    )


def _waits_of(call: Callable[[], object], device: torch.device) -> int:
    with counted(device) as waits:
        call()
    return waits.total()


def attacked(name: str, norm: Norm, arguments: Mapping[str, object], device: torch.device) -> tuple[int, int]:
    """How often the processor waits in a run of a registered attack with these arguments, and how many steps it takes."""
    attack: Attack = registry.attacks.create(Spec.of(name, {**_OPEN.get(name, {}), **arguments}))
    with seeded(0, device):
        model = registry.build_network(Spec(NETWORK), SHAPE, 10).to(device).eval()
    rng = ExampleRNG.make(0, "attack", torch.arange(IMAGES, device=device))
    x = rng.fork("images").uniform(SHAPE)
    with torch.no_grad():
        goal = Untargeted(model(x).argmax(dim=1))
    threat = ThreatModel(norm, None if attack.minimal_norm else WEAK[norm])
    with attack.knowledge(model, rng.fork("model")) as access, counted(device) as waits:
        attack(access, x, goal, threat, rng.fork("attack"))
    return waits.total(), int(access.ledger.backwards.max()) or int(access.ledger.queries.max())
