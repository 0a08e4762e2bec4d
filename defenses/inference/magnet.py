"""MagNet: an autoencoder reforms images before they are classified, and rejects those that it cannot reconstruct."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.defenses.defended import Defended, Detector, Input
from advbench.defenses.inference.at_test_time import TestTimeDefense
from advbench.defenses.inference.composition import purified
from advbench.zoo.data import DataSet

_BATCH = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class MagNet(TestTimeDefense):
    """MagNet, a DAE as reformer and its reconstruction error as detector, Meng and Chen 2017, arXiv:1705.09064.

    The classifier sees r(x), one full step of the denoiser that `mala` has too, without noise: how Srinivasan et al. 2018
    (arXiv:1805.12017) run MagNet, without its detector (``detector=None``). The detector rejects images whose reconstruction
    error ``(mean of |r(x) - x|^p)^(1/p)`` over pixels is above a threshold, the smallest that rejects at most `fpr` of the
    clean validation images.

    detector: p, 1 and 2 in Meng and Chen; None reforms only. fpr: rate of clean images rejected, 0.001 in that paper on
    MNIST. sigma: of the denoiser's training. base: the spec of the defense that trained the classifier.
    """

    detector: float | None = 2.0
    fpr: float = 0.01
    sigma: float = 0.3
    base: str = "none"

    def __post_init__(self) -> None:
        if self.detector is not None and not (math.isfinite(self.detector) and self.detector >= 1):
            raise ValueError(f"Expected `detector` >= 1 or None, got {self.detector}")
        if not 0 <= self.fpr < 1:
            raise ValueError(f"Expected `fpr` in [0, 1), got {self.fpr}")

    @property
    def models(self) -> Mapping[str, str | Input]:
        """The denoiser that all classifiers share."""
        return {"denoiser": f"dae(sigma={self.sigma!r})"}

    def wrap(self, inputs: Mapping[str, Defended]) -> Defended:
        """The denoiser in front of ``inputs["base"]``, and the detector beside it, its threshold not yet set."""
        return self._around(inputs)[0]

    def _around(self, inputs: Mapping[str, Defended]) -> tuple[Defended, ReconstructionError | None]:
        """The defense, and its detector where it has one."""
        denoiser = inputs["denoiser"].model
        judge = None if self.detector is None else ReconstructionError(denoiser, self.detector)
        detector = None if judge is None else Detector(judge)
        return purified(inputs["base"], denoiser, stochastic=False, detector=detector), judge

    def fitted(self, data: DataSet, inputs: Mapping[str, Defended], *, seed: int, device: torch.device) -> Defended:  # noqa: ARG002
        """The defense with its threshold calibrated on the validation images, on `device`; `facts` say which."""
        defended, judge = self._around(inputs)
        defended.modules().to(device).eval()
        if judge is None:
            return defended
        x = data.validation.x.to(device)
        with torch.no_grad():
            judge.threshold.zero_()
            judge.threshold.copy_(threshold(torch.cat([judge(part) for part in torch.split(x, _BATCH)]), self.fpr))
        facts = {"threshold": float(judge.threshold)}
        return Defended(defended.model, defended.stochastic, defended.surrogates, facts=facts, detector=defended.detector)


class ReconstructionError(nn.Module):
    """How far images are from their reconstructions, less a threshold: images (n, c, h, w) -> scores (n,).

    denoiser: images -> images. p: of the norm, the mean being taken over pixels. The buffer `threshold` is what errors are
    compared with; above zero an image is rejected.
    """

    threshold: Tensor

    def __init__(self, denoiser: nn.Module, p: float) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.p = p
        self.register_buffer("threshold", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        """The error less the threshold, shape (n,)."""
        residual = (self.denoiser(x) - x).flatten(1)
        error: Tensor = torch.linalg.vector_norm(residual, ord=self.p, dim=1) / residual.shape[1] ** (1 / self.p)
        return error - self.threshold


def threshold(errors: Tensor, fpr: float) -> Tensor:
    """The smallest of `errors`, shape (n,), that at most a share `fpr` of them, in [0, 1), exceeds; a scalar."""
    return errors.sort().values[len(errors) - 1 - math.floor(fpr * len(errors))]
