"""Optimizers that torch does not have."""

from __future__ import annotations

from collections.abc import Callable, Iterable
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
                    self._update(weight, weight.grad.add(weight, alpha=group["weight_decay"]), group)
        return loss

    def _update(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["step"] = 0
            state["gradient"] = torch.zeros_like(weight)
            state["zeta"] = torch.ones_like(weight)
            state["mean_zeta"] = torch.ones_like(weight)
            state["mean_square"] = torch.zeros_like(weight)
        state["step"] += 1
        agreement = gradient.sign() * state["gradient"].sign()
        factor = torch.ones_like(weight).masked_fill_(agreement > 0, group["eta_plus"])
        factor.masked_fill_(agreement < 0, group["eta_minus"])
        beta_1, beta_2 = group["betas"]
        zeta = state["zeta"].mul_(factor).clamp_(*group["zeta_range"])
        mean_zeta = state["mean_zeta"].mul_(group["alpha"]).add_(zeta, alpha=1 - group["alpha"])
        mean_square = state["mean_square"].mul_(beta_2).addcmul_(gradient, gradient, value=1 - beta_2)
        rate = group["lr"] * (1 - beta_2 ** state["step"]) ** 0.5 / (1 - beta_1 ** state["step"])
        weight.addcdiv_(zeta * gradient, mean_zeta * (mean_square.sqrt() + 1e-11), value=-rate)
        state["gradient"].copy_(gradient)
