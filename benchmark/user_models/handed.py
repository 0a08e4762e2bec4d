"""Modules of the user's, behind what the harness expects of a module."""

from __future__ import annotations

from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from advbench import modes
from advbench.config import Outputs
from advbench.user_models.outputs import log_probabilities, tensor_in

_INNER = "inner."


class Handed(nn.Module):
    """A module that was handed in, behind what the harness expects of one. Its state has the module's own names.

    inner: images (n, c, h, w) in [0, 1] -> what `outputs` says, (n, classes); answers logits, or log-probabilities.

    It can be switched to evaluation mode where the module cannot (programs of torch.export) or has none (frozen
    TorchScript). A module whose parameters are all of one other precision gets images of that, if it refuses float32. One
    that breaks where gradients are recorded, as NumPy inside does, answers without them. None runs in torch's inference
    mode, whose tensors a module may keep and then fail on. Of an object with `logits`, a tuple, list or dictionary with one
    tensor (n, classes) that tensor is the answer, and `taken` says so.
    """

    def __init__(self, inner: nn.Module, outputs: Outputs = "logits") -> None:
        super().__init__()
        self.inner = inner
        self.outputs: Outputs = outputs
        self.taken = ""
        self._dtype: torch.dtype | None = None
        self._has_gradients: bool | None = None
        self.register_load_state_dict_pre_hook(_renamed)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        """What it is, beside its parts."""
        return f"outputs={self.outputs}"

    def train(self, mode: bool = True) -> Handed:
        """Switch the module, if it can be."""
        self.training = mode
        if not mode:
            modes.evaluate(self.inner)
        else:
            self.inner.train(mode)
        return self

    def state_dict(self, *arguments: Any, **keywords: Any) -> Any:
        """That of the module, and the constants of frozen TorchScript, which are its weights."""
        found = self.inner.state_dict(*arguments, **keywords)
        for name, module in self.inner.named_modules():
            if isinstance(module, torch.jit.ScriptModule) and not hasattr(module, "training"):
                place = keywords.get("prefix", "") + (f"{name}." if name else "")
                found.update({f"{place}constant{number}": value for number, value in enumerate(_constants(module.graph))})
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Logits or log-probabilities, (n, classes), of images (n, c, h, w)."""
        if torch.is_inference_mode_enabled():
            with torch.inference_mode(False), torch.no_grad():
                return self._answer(x.clone())
        answers: object = self._answer(x)
        return answers.clone() if isinstance(answers, Tensor) and answers.is_inference() else answers  # type: ignore[return-value]

    def _answer(self, x: Tensor) -> Tensor:
        if not (torch.is_grad_enabled() and x.requires_grad):
            return self._precise(x)
        if self._has_gradients is None:
            return self._first(x)
        if self._has_gradients:
            return self._precise(x)
        with torch.no_grad():
            return self._precise(x.detach())

    def _first(self, x: Tensor) -> Tensor:
        """The first answer where gradients are recorded; without them if the module can only be asked so."""
        try:
            answers = self._precise(x)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            try:
                with torch.no_grad():
                    answers = self._precise(x.detach())
            except Exception:
                raise error from None
            self._has_gradients = False
            return answers
        self._has_gradients = True
        return answers

    def _precise(self, x: Tensor) -> Tensor:
        if self._dtype is not None:
            return self._asked(x.to(self._dtype))
        try:
            return self._asked(x)
        except RuntimeError as error:
            dtype = _one_dtype(self.inner)
            if dtype in (None, x.dtype):
                raise
            try:
                answers = self._asked(x.to(dtype))
            except Exception:
                raise error from None
            self._dtype = dtype
            return answers

    def _asked(self, x: Tensor) -> Tensor:
        if self.outputs == "logits":
            return self._tensor(x)
        return log_probabilities(self._tensor, x, self.outputs)

    def _tensor(self, x: Tensor) -> Tensor:
        """The tensor of what the module returns; `taken` says where it was found, if it returns more."""
        found, how = tensor_in(self.inner(x), len(x))
        self.taken = self.taken or how
        return found  # type: ignore[return-value]


def as_logits(model: nn.Module, outputs: Outputs) -> nn.Module:
    """A module that answers logits or log-probabilities: itself, if it does.

    Raises ValueError for outputs that are no `advbench.config.Outputs`.
    """
    if outputs not in get_args(Outputs):
        raise ValueError(f"Expected `outputs` {', '.join(get_args(Outputs))}, got {outputs!r}")
    return model if outputs == "logits" else Handed(model, outputs)


def _renamed(
    module: nn.Module,  # noqa: ARG001
    state: MutableMapping[str, object],
    prefix: str,
    *_: object,
) -> None:
    """Before the module's own names are loaded: as they are called inside."""
    for name in [name for name in state if name.startswith(prefix)]:
        state[prefix + _INNER + name.removeprefix(prefix)] = state.pop(name)


def _constants(graph: Any) -> Iterator[Tensor]:
    """The tensors that are written into a graph of TorchScript, in order."""
    for node in graph.nodes():
        if node.kind() == "prim::Constant" and "value" in node.attributeNames() and node.kindOf("value") == "t":
            yield node.t("value")
        for block in node.blocks():
            yield from _constants(block)


def _one_dtype(module: nn.Module) -> torch.dtype | None:
    """The precision of all floating parameters of a module; None if there are several or none."""
    found = {parameter.dtype for parameter in module.parameters() if parameter.dtype.is_floating_point}
    return found.pop() if len(found) == 1 else None


@contextmanager
def outside_inference_mode(model: nn.Module) -> Iterator[None]:
    """Tensors that a module was given in torch's inference mode as ordinary ones; they are put back afterwards."""
    undo = ordinary(model)
    try:
        yield
    finally:
        for store, name, value in undo:
            store[name] = value


def ordinary(model: nn.Module) -> list[tuple[MutableMapping[str, Any], str, Tensor]]:
    """Replace tensors of torch's inference mode, on which nothing can be differentiated, by ordinary copies of them.

    Returns what stood where.
    """
    undo: list[tuple[MutableMapping[str, Any], str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    for module in model.modules():
        own = vars(module)
        stores: list[dict[str, Any]] = [own, *(own[kind] for kind in ("_parameters", "_buffers") if kind in own)]
        for store in stores:
            for name, value in list(store.items()):
                if isinstance(value, Tensor) and value.is_inference():
                    copy = copies.setdefault(id(value), _ordinary(value))
                    undo.append((store, name, value))
                    store[name] = copy
    return undo


def _ordinary(value: Tensor) -> Tensor:
    with torch.inference_mode(False), torch.no_grad():
        copy = value.detach().clone()
    return nn.Parameter(copy, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else copy
