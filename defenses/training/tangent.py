"""Robust optimisation along the data: the uncertainty set is a piece of the plane that is tangent to the training images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advbench.attacks import balls
from advbench.attacks.threat import Norm, ThreatModel, Untargeted
from advbench.attacks.threat import cross_entropy as attack_loss
from advbench.defenses.training.ascent import input_gradient, unchanged
from advbench.defenses.training.trained import FromScratch, places
from advbench.zoo.data import Split
from advbench.zoo.training import Objective, Step

_CHUNK = 1024
"""Images whose distances to a class are held at once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RobustTangent(FromScratch):
    """Robust optimisation in the tangent plane of the data, after Shaham et al. 2015, arXiv:1511.05432.

    The paper names the uncertainty set without running it: the tangent plane at x intersected with an l2 ball, whose
    first-order maximiser is ``epsilon * P g / ||P g||_2``, P the projection on an orthonormal tangent basis. The descent
    step sees the perturbed images alone, as in algorithm 1.

    The basis is estimated by local PCA: the leading principal directions of the image together with its nearest training
    images of the same class (Euclidean distance of pixels; a step along the data must not change the label), about their
    common mean. Neighbours are found once, before the first step.

    epsilon: in pixel units of [0, 1]; None is the run's in l2, which the plan fills in. neighbours: images
    beside the image itself; fewer where the class has fewer. dimension: directions kept, at most `neighbours`. steps,
    step_size: of the ascent, which is projected on the plane and the ball; the latter as a fraction of epsilon. clip: keep
    perturbed images in [0, 1], which may take them off the plane, though never out of the ball.

    Raises ValueError for a number out of range.
    """

    norm: ClassVar[Norm] = "l2"
    epsilon: float | None = None
    neighbours: int = 20
    dimension: int = 10
    steps: int = 1
    step_size: float = 1.0
    clip: bool = True

    def __post_init__(self) -> None:
        if self.epsilon is not None:
            ThreatModel(self.norm, self.epsilon)
        if not 1 <= self.dimension <= self.neighbours:
            raise ValueError(f"Expected 1 <= `dimension` <= `neighbours`, got {self.dimension} and {self.neighbours}")
        if self.steps < 1:
            raise ValueError(f"Expected `steps` >= 1, got {self.steps}")
        if not self.step_size > 0:
            raise ValueError(f"Expected `step_size` > 0, got {self.step_size}")

    def start(self, training: Split) -> Objective:
        """The objective, which knows each training image's neighbours. ValueError if `epsilon` is None."""
        if self.epsilon is None:
            raise ValueError(f"Expected `epsilon` > 0, got None: give {type(self).__name__} one in {self.norm}")
        count = max(0, min(self.neighbours, int(training.y.bincount().min()) - 1))
        table, place = nearest(training.x, training.y, training, count + 1)[:, 1:], places(training)

        def objective(model: nn.Module, x: Tensor, y: Tensor, step: Step) -> Mapping[str, Tensor]:
            rows = table[place[step.index]] if step.training else nearest(x, y, training, count)
            beside = step.transform(training.x[rows].flatten(1, 2)).view(*rows.shape, *x.shape[1:])
            basis = tangent_basis(torch.cat((x.unsqueeze(1), beside), dim=1), self.dimension)
            return {"adversarial": cross_entropy(model(self._climb(model, x, y, basis)), y)}

        return objective

    def _climb(self, model: nn.Module, x: Tensor, y: Tensor, basis: Tensor) -> Tensor:
        """Images of higher loss, shape (n, c, h, w): projected ascent in the plane of `basis` and the ball."""
        threat = ThreatModel(self.norm, self.epsilon)
        x_adv, delta = x, torch.zeros_like(x)
        with unchanged(model):
            for _ in range(self.steps):
                gradient = input_gradient(model, x_adv, lambda logits: attack_loss(logits, Untargeted(y)))
                direction = balls.steepest(on_plane(gradient, basis), threat)
                delta = delta + self.step_size * threat.epsilon_or_inf * direction
                size = balls.distance(delta, "l2").clamp(min=threat.epsilon_or_inf)
                delta = delta * (threat.epsilon_or_inf / size).view(-1, 1, 1, 1)
                x_adv = (x + delta).clamp(0, 1) if self.clip else x + delta
        return x_adv


def nearest(x: Tensor, y: Tensor, training: Split, count: int) -> Tensor:
    """Positions in `training` of the `count` nearest images of each image's class, nearest first, shape (n, count).

    x: images (n, c, h, w), y: labels (n,), on the device of `training`. Distances are Euclidean.
    """
    found = torch.empty(len(x), count, dtype=torch.int64, device=x.device)
    for label in torch.unique(y):
        pool = (training.y == label).nonzero().flatten()
        images = training.x[pool].flatten(1)
        for rows in (y == label).nonzero().flatten().split(_CHUNK):
            distances = torch.cdist(x[rows].flatten(1), images)
            found[rows] = pool[distances.topk(count, dim=1, largest=False).indices]
    return found


def tangent_basis(around: Tensor, dimension: int) -> Tensor:
    """An orthonormal basis of each neighbourhood's leading principal directions, shape (n, dimension, c * h * w).

    around: neighbourhoods (n, k, c, h, w). Where the images span fewer directions, the rest of the basis is zero. Worked in
    float64 through the k x k Gram matrix of the centred images, whose eigenvectors give the directions.
    """
    flat = around.double().flatten(2)
    centred = flat - flat.mean(dim=1, keepdim=True)
    values, vectors = torch.linalg.eigh(centred @ centred.mT)
    values, vectors = values[:, -dimension:].flip(1), vectors[:, :, -dimension:].flip(2)
    spans = values > 1e-10 * values[:, :1]
    lengths = values.where(spans, torch.inf).sqrt().unsqueeze(2)
    basis: Tensor = vectors.mT @ centred / lengths
    return basis.to(around.dtype)


def on_plane(vectors: Tensor, basis: Tensor) -> Tensor:
    """The projection of `vectors` (n, c, h, w) on the planes that `basis`, shape (n, m, c * h * w), spans."""
    flat = vectors.flatten(1).unsqueeze(2)
    projected: Tensor = basis.mT @ (basis @ flat)
    return projected.view_as(vectors)
