"""Optimizers that torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor


class WAME(torch.optim.Optimizer):
    """WAME, weight-wise adaptive learning rates with a moving average estimator (Mosca and Magoulas 2017, ESANN, p. 207).

    Every weight has an acceleration zeta: multiplied by `eta_plus` where its gradient keeps its sign, by `eta_minus` where
    it changes, and kept in `zeta_range`. The step is

        w -= lr_t * (zeta / Z) * g / (sqrt(v) + 1e-11),   lr_t = lr * sqrt(1 - beta_2^t) / (1 - beta_1^t)

    with Z the moving average of zeta (decay `alpha`) and v that of g^2 (decay `beta_2`). zeta and Z start at one, v at zero.
    Defaults, start and lr_t are those of the authors' Keras code; there is no first moment for `beta_1` to correct, so the
    first steps are up to ten times as long as the last. Where that code compares the gradient with the previous parameter,
    the published rule, taken here, compares it with the previous gradient.

    parameters: tensors or groups of them. lr: learning rate. weight_decay: L2 coefficient, added to the gradient.
    Raises ValueError for a rate, a decay or a factor out of range.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Iterable[dict[str, Any]],
        lr: float = 1e-3,
        *,
        alpha: float = 0.9,
        betas: tuple[float, float] = (0.9, 0.999),
        eta_plus: float = 1.2,
        eta_minus: float = 0.1,
        zeta_range: tuple[float, float] = (0.01, 100.0),
        weight_decay: float = 0.0,
    ) -> None:
        if not lr > 0:
            raise ValueError(f"Expected `lr` > 0, got {lr}")
        for name, value in (("alpha", alpha), ("betas[0]", betas[0]), ("betas[1]", betas[1])):
            if not 0 <= value < 1:
                raise ValueError(f"Expected `{name}` in [0, 1), got {value}")
        if not 0 < eta_minus <= 1 <= eta_plus:
            raise ValueError(f"Expected 0 < `eta_minus` <= 1 <= `eta_plus`, got {eta_minus} and {eta_plus}")
        if not 0 < zeta_range[0] <= 1 <= zeta_range[1]:
            raise ValueError(f"Expected `zeta_range` around 1 with both ends positive, got {zeta_range}")
        defaults = {
            "lr": lr,
            "alpha": alpha,
            "betas": betas,
            "eta_plus": eta_plus,
            "eta_minus": eta_minus,
            "zeta_range": zeta_range,
            "weight_decay": weight_decay,
        }
        super().__init__(parameters, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of every parameter that has a gradient; `closure` recomputes the loss, which is returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for weight in group["params"]:
                if weight.grad is not None:
                    self._update(weight, weight.grad, group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["sign"] = torch.zeros_like(weight)
            state["zeta"] = torch.ones_like(weight)
            state["mean_zeta"] = torch.ones_like(weight)
            state["mean_square"] = torch.zeros_like(weight)
        state["step"] += 1
        beta_1, beta_2 = group["betas"]
        rate = group["lr"] * (1 - beta_2 ** state["step"]) ** 0.5 / (1 - beta_1 ** state["step"])
        moving = (state["sign"], state["zeta"], state["mean_zeta"], state["mean_square"])
        for piece in _pieces(weight, gradient, *moving):
            _move(*piece, rate=rate, group=group)


_PIECE = 2**16
"""Weights at a time on the processor, so that what one operation wrote is in the cache for the next."""


def _pieces(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of tensors of one shape, some weights of each at a time; whole ones on an accelerator or if they lie apart."""
    size = tensors[0].numel()
    if tensors[0].device.type != "cpu" or size <= _PIECE or not all(tensor.is_contiguous() for tensor in tensors):
        yield tensors
        return
    flat = [tensor.view(-1) for tensor in tensors]
    for start in range(0, size, _PIECE):
        yield tuple(tensor[start : start + _PIECE] for tensor in flat)


def _move(
    weight: Tensor,
    gradient: Tensor,
    sign: Tensor,
    zeta: Tensor,
    mean_zeta: Tensor,
    mean_square: Tensor,
    *,
    rate: float,
    group: dict[str, Any],
) -> None:
    """The step of some weights, in place; `rate` is lr_t, and `sign` that of their last gradient."""
    if group["weight_decay"]:
        gradient = gradient.add(weight, alpha=group["weight_decay"])
    now, beta_2 = gradient.sign(), group["betas"][1]
    agreement = sign.mul_(now)
    factor = torch.ones_like(zeta).masked_fill_(agreement > 0, group["eta_plus"])
    zeta.mul_(factor.masked_fill_(agreement < 0, group["eta_minus"])).clamp_(*group["zeta_range"])
    sign.copy_(now)
    mean_zeta.mul_(group["alpha"]).add_(zeta, alpha=1 - group["alpha"])
    mean_square.mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
    weight.addcdiv_(zeta * gradient, mean_square.sqrt().add_(1e-11).mul_(mean_zeta), value=-rate)
