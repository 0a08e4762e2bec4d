"""Label leaking: a network that does better on images perturbed with their true label than on clean ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy
from advbench.defenses.training.ascent import climb
from advbench.defenses.training.augmented import predicted
from advbench.modes import evaluating
from advbench.zoo.data import Split


@dataclass(frozen=True, slots=True)
class LabelLeaking:
    """Accuracies in [0, 1] on clean images, and under FGSM with the true and with the predicted label."""

    clean: float
    true_label: float
    predicted_label: float

    @property
    def leaks(self) -> bool:
        """Whether the perturbation gives the true label away: images perturbed with it are answered better than clean."""
        return self.true_label > self.clean


def label_leaking(model: nn.Module, split: Split, epsilon: float, batch: int = 512) -> LabelLeaking:
    """Measure label leaking (Kurakin et al. 2017, arXiv:1611.01236; checked by Roth et al. 2018, arXiv:1805.08736).

    model: images (n, c, h, w) in [0, 1] -> logits, deterministic; it comes back as it was. split: on the model's device.
    epsilon: of one FGSM step. Raises ValueError for an empty split.
    """
    if not len(split):
        raise ValueError("Expected at least one image to measure label leaking on, got none")
    threat = ThreatModel("linf", epsilon)
    correct = torch.zeros(3, dtype=torch.int64, device=split.x.device)
    with evaluating(model):
        for x, y in zip(torch.split(split.x, batch), torch.split(split.y, batch), strict=True):
            answer = predicted(model, x)
            attacked = [predicted(model, _step(model, x, label, threat)) for label in (y, answer)]
            correct += torch.stack([(labels == y).sum() for labels in (answer, *attacked)])
    clean, true_label, predicted_label = (correct.double() / len(split)).tolist()
    return LabelLeaking(clean, true_label, predicted_label)


def _step(model: nn.Module, x: Tensor, label: Tensor, threat: ThreatModel) -> Tensor:
    def loss(logits: Tensor) -> Tensor:
        return cross_entropy(logits, Untargeted(label))

    return climb(model, x, x, loss, threat, steps=1, step_size=1.0)
