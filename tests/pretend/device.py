"""A device that is not there: tensors on torch's private-use device that the processor computes, as strict as a GPU's.

``torch.device("pretend")`` exists after `register`, before the first backward of the process: torch counts its devices then.
Its tensors hold a tensor of the processor (`PretendTensor.host`). What a GPU refuses is refused: an operation on tensors of
two devices (those without dimensions may lie on the processor, and so may indices), a generator of another device, `numpy`.
What makes the processor wait for a GPU is counted by `waits`: what `advbench.benches.waits.question` knows, a copy to the
processor, a blocking one from it.
"""

from __future__ import annotations

import contextlib
import types
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import backend_registration

from advbench.benches.waits import question

AVAILABLE = hasattr(backend_registration, "_setup_privateuseone_for_python_backend")
KIND = "pretend"
aten = torch.ops.aten

_GENERATOR = torch.Generator().manual_seed(0)
_GENERATORS: weakref.WeakSet[torch.Generator] = weakref.WeakSet()
"""Those made for the device; what an operation is handed is another object, of the same state."""
_COUNTED: list[Counter[str]] = []

_MOVING = {aten._to_copy.default, aten.copy_.default, aten.copy.default, aten._copy_from.default}
_INDEXING = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
_RESHAPING = {"squeeze_", "unsqueeze_", "transpose_", "t_", "as_strided_", "swapdims_", "swapaxes_"}


@contextlib.contextmanager
def waits() -> Iterator[Counter[str]]:
    """Count how often the processor waits for the device inside, by kind.

    >>> with waits() as counted:
    ...     found = torch.ones(2, device="pretend").sum().item()
    >>> found, dict(counted)
    (2.0, {'item': 1})
    """
    counted: Counter[str] = Counter()
    _COUNTED.append(counted)
    try:
        yield counted
    finally:
        _COUNTED.remove(counted)


def _waits_for(kind: str) -> None:
    for counted in _COUNTED:
        counted[kind] += 1


class PretendTensor(Tensor):
    """A tensor of the device; `host` is its twin on the processor, of the same shape, strides and storage offset."""

    host: Tensor

    @staticmethod
    def __new__(cls, host: Tensor, requires_grad: bool = False) -> PretendTensor:
        host = host.resolve_conj().resolve_neg()  # the device's tensors have no such bits, which views of a twin would need
        made: PretendTensor = Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls,
            host.shape,
            strides=host.stride(),
            storage_offset=host.storage_offset(),
            dtype=host.dtype,
            layout=host.layout,
            device=torch.device(KIND, 0),
            requires_grad=requires_grad,
        )
        made.host = host
        return made

    def __init__(self, host: Tensor, requires_grad: bool = False) -> None:
        pass

    def __repr__(self, **_: object) -> str:  # type: ignore[override]
        return f"pretend({self.host!r})"

    def __deepcopy__(self, memo: dict[int, Any]) -> PretendTensor:
        if id(self) not in memo:
            copy = PretendTensor(self.host.clone(), self.requires_grad)
            for name, value in self.__dict__.items():
                if name != "host":
                    setattr(copy, name, value)
            memo[id(self)] = copy
        return memo[id(self)]

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """What torch asks of subclasses whose parameters a module may swap for those on another device."""
        return ["host"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *_: object) -> PretendTensor:
        return PretendTensor(inner["host"])

    def data_ptr(self) -> int:
        return self.host.data_ptr()

    def is_set_to(self, other: Tensor) -> bool:
        return isinstance(other, PretendTensor) and self.host.is_set_to(other.host)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # A view of a normal tensor is a normal one in inference mode too, which wrappers made there would not be.
        with torch.inference_mode(False) if torch.is_inference_mode_enabled() else contextlib.nullcontext():
            return computed(func, args, kwargs or {})


class PretendGenerator(torch.Generator):
    """What `torch.Generator` is with the device registered, to which no generators can be added from Python."""

    def __new__(cls, device: Any = "cpu") -> PretendGenerator:
        made = super().__new__(cls, "cpu" if _is_ours(device) else device)
        if _is_ours(device):
            _GENERATORS.add(made)
        return made


def computed(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """What an operation of torch answers, computed by the processor; RuntimeError for what a GPU would refuse."""
    given = list(_tensors((args, *kwargs.values())))
    name = func._schema.name
    if name.rpartition("::")[2] in _RESHAPING and isinstance(args[0], PretendTensor):
        return _reshaped(func, name.rpartition("::")[2], args, kwargs)
    _check_devices(func, name, args, given)
    target = kwargs.get("device")
    on_device = any(isinstance(each, PretendTensor) for each in given) if target is None else _is_ours(target)
    if target is not None:
        kwargs = {**kwargs, "device": torch.device("cpu")}
    _count(func, args, on_device, given)
    twins = {id(each.host): each for each in given if isinstance(each, PretendTensor)}
    host_args, host_kwargs = _mapped(_host, args), {key: _mapped(_host, value) for key, value in kwargs.items()}
    with _drawing(func, host_kwargs) if on_device else contextlib.nullcontext():
        answer = func(*host_args, **host_kwargs)

    def wrapped(each: Tensor) -> Tensor:
        if id(each) in twins:
            twin = twins[id(each)]
            if twin.shape != each.shape:
                raise NotImplementedError(f"the pretend device cannot resize what an operation writes into: {name}")
            return twin
        if isinstance(each, PretendTensor) or not on_device or any(each is one for one in given):
            return each
        return PretendTensor(each)

    return _mapped(wrapped, answer)


def _host(tensor: Tensor) -> Tensor:
    return tensor.host if isinstance(tensor, PretendTensor) else tensor


def _tensors(given: Any) -> Iterator[Tensor]:
    """The tensors among an operation's arguments, which may be lists."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, list | tuple):
        for each in given:
            yield from _tensors(each)


def _mapped(change: Callable[[Tensor], Tensor], given: Any) -> Any:
    """An operation's arguments or answers with every tensor changed."""
    if isinstance(given, Tensor):
        return change(given)
    if isinstance(given, list | tuple):
        return type(given)([_mapped(change, each) for each in given])
    return given


def _reshaped(func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Tensor:
    """A tensor with another shape of the same memory, in place."""
    tensor: PretendTensor = args[0]
    tensor.host = getattr(tensor.host, name.removesuffix("_"))(*args[1:], **kwargs)
    with torch._C._DisableTorchDispatch():  # the wrapper's own shape
        func(*args, **kwargs)
    return tensor


def _is_ours(device: Any) -> bool:
    return torch.device(device).type == KIND


def _check_devices(func: Any, name: str, args: Any, given: list[Tensor]) -> None:
    """Raise RuntimeError if tensors of the processor, which have dimensions, meet those of the device."""
    if func in _MOVING or not any(isinstance(each, PretendTensor) for each in given):
        return
    strict = given
    if func in _INDEXING and isinstance(args[0], PretendTensor):
        indices = list(_tensors(args[1]))
        strict = [each for each in given if not any(each is one for one in indices)]
    elsewhere = [each for each in strict if not isinstance(each, PretendTensor) and each.ndim]
    if elsewhere:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but {name} got {KIND}:0 and cpu ({tuple(elsewhere[0].shape)})"
        )
    written = args[0] if name.endswith("_") and args else None
    if isinstance(written, Tensor) and not isinstance(written, PretendTensor):
        raise RuntimeError(f"Expected all tensors to be on the same device, but {name} writes from {KIND}:0 into cpu")


def _count(func: Any, args: Any, on_device: bool, given: list[Tensor]) -> None:
    if not any(isinstance(each, PretendTensor) for each in given):
        return
    asked = question(func, args)
    if asked is not None:
        _waits_for(asked)
    elif (func is aten._to_copy.default and not on_device) or (
        func in (aten.copy_.default, aten._copy_from.default) and _leaves(func, args)
    ):
        _waits_for("copy to cpu")
    elif func is aten.copy_.default and not isinstance(args[1], PretendTensor) and not any(args[2:]):
        _waits_for("copy to device")


def _leaves(func: Any, args: Any) -> bool:
    """Whether a copy goes from the device to the processor."""
    source, target = (args[0], args[1]) if func is aten._copy_from.default else (args[1], args[0])
    return isinstance(source, PretendTensor) and not isinstance(target, PretendTensor)


@contextlib.contextmanager
def _drawing(func: Any, kwargs: dict[str, Any]) -> Iterator[None]:
    """Let an operation that draws random numbers take those of the device's own generator."""
    given = kwargs.get("generator")
    if given is not None and not any(torch.equal(one.get_state(), given.get_state()) for one in _GENERATORS):
        raise RuntimeError(f"Expected a '{KIND}' device type for generator but found '{given.device.type}'")
    if given is not None or torch.Tag.nondeterministic_seeded not in func.tags:
        yield
        return
    before = torch.get_rng_state()
    torch.set_rng_state(_GENERATOR.get_state())
    try:
        yield
    finally:
        _GENERATOR.set_state(torch.get_rng_state())
        torch.set_rng_state(before)


def _factories() -> Iterator[Any]:
    """Every operation of torch that makes a tensor on a device from none."""
    for full in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = full.partition("::")
        name, _, overload = rest.partition(".")
        if namespace != "aten" or not hasattr(aten, name):
            continue
        op = getattr(getattr(aten, name), overload or "default", None)
        if op is None or len(op._schema.returns) != 1 or str(op._schema.returns[0].type) != "Tensor":
            continue
        kinds = {argument.name: str(argument.type) for argument in op._schema.arguments}
        if "device" in kinds and not any("Tensor" in kind for kind in kinds.values()):
            yield op


def _module() -> types.ModuleType:
    """What `torch.pretend` is: the functions that torch and a run ask of a device's module."""
    module = types.ModuleType(f"torch.{KIND}")

    def manual_seed(seed: int) -> None:
        _GENERATOR.manual_seed(seed)

    known = {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "_is_in_bad_fork": lambda: False,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(),
        "get_device_name": lambda device=None: "a pretended device",
        "synchronize": lambda device=None: None,
        "get_rng_state": lambda device=None: _GENERATOR.get_state(),
        "set_rng_state": lambda state, device=None: _GENERATOR.set_state(state),
        "manual_seed": manual_seed,
        "manual_seed_all": manual_seed,
        "memory_allocated": lambda device=None: 1,
        "max_memory_allocated": lambda device=None: 1,
        "reset_peak_memory_stats": lambda device=None: None,
        "get_amp_supported_dtype": lambda: [torch.bfloat16],
    }
    for name, value in known.items():
        setattr(module, name, value)
    return module


_LIBRARIES: list[torch.library.Library] = []


def register() -> None:
    """Make ``torch.device("pretend")`` known to torch and to advbench, once in a process."""
    from advbench import devices

    if _LIBRARIES:
        return
    backend_registration._setup_privateuseone_for_python_backend(KIND, backend_module=_module())  # type: ignore[attr-defined]
    library = torch.library.Library("aten", "IMPL")
    for op in _factories():
        library.impl(op._name.removeprefix("aten::"), _factory(op), "PrivateUse1")
    library.impl(
        "_copy_from",
        lambda source, target, non_blocking=False: computed(aten.copy_.default, (target, source, non_blocking), {}),
        "PrivateUse1",
    )
    torch.Generator = PretendGenerator  # type: ignore[misc]
    _LIBRARIES.append(library)  # what it registers lives as long as it
    devices.TRAITS[KIND] = devices.DeviceTraits(triton=False)


def _factory(op: Any) -> Any:
    def made(*args: Any, **kwargs: Any) -> Tensor:
        answer: Tensor = computed(op, args, {**kwargs, "device": torch.device(KIND)})
        return answer

    return made
