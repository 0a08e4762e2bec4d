"""One attack on one live model: `advbench.attack`, tensors in, adversarial images and facts of each out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.config import Outputs
from advbench.files import temporary_folder
from advbench.records.kept_images import images_of
from advbench.registry.specs import Spec
from advbench.reports.evaluation_result import EvaluationResult
from advbench.user_models.arrays import as_it_came, split_of
from advbench.user_models.blockwise import Blockwise
from advbench.user_models.target import Live, evaluate_live
from advbench.user_models.weights import Own
from advbench.zoo.data import Split

_AT_ONCE = 128


class AttackError(RuntimeError):
    """An attack failed, or returned images that the threat does not allow; the message says how, in one line.

    >>> AttackError("fgsm failed: out of memory").args
    ('fgsm failed: out of memory',)
    """


@dataclass(frozen=True, slots=True, eq=False)
class AttackResult:
    """What an attack made of labelled images, verified by the harness; every tensor on the device of the images.

    x_adv: adversarial images, (n, c, h, w), of the type and on the device of the images that came in. Where the attack did
    not succeed, its last proposal, or the clean image.
    success: whether the model is right about the clean image and wrong about the adversarial one, within epsilon, (n,) bool.
    clean_correct: whether it is right about the clean image, (n,) bool.
    distance: of the perturbation, in the norm of the threat, infinity where a minimal-norm attack failed, NaN where the
    clean image was wrong already and nothing was attacked, (n,) float64.
    margin: the logit of the true class less the largest other, on the adversarial image, in a pass of its own, below zero
    where the model is fooled; of a random model in one draw; (n,) float64. prediction: its label for the image, (n,) int64.
    forwards, backwards, queries: passes that each image cost, (n,) int64.
    evaluation: the whole result, with flags, notes and intervals.

    Its text is a line.

    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> model[1].weight.data = 2 * torch.eye(2)
    >>> x = torch.tensor([[0.9, 0.1], [0.45, 0.55]]).view(2, 1, 1, 2)
    >>> result = attack("fgsm", model, x, torch.tensor([0, 1]), epsilon=0.1, batch=2)
    >>> print(result)
    fgsm fools the model on 1 of 2 images that it gets right (2 in all), at a median distance of 0.1; forwards per image: 1
    """

    x_adv: Tensor
    success: Tensor
    clean_correct: Tensor
    distance: Tensor
    margin: Tensor
    prediction: Tensor
    forwards: Tensor
    backwards: Tensor
    queries: Tensor
    evaluation: EvaluationResult

    def __len__(self) -> int:
        return len(self.success)

    @property
    def flags(self) -> list[dict[str, str | int]]:
        """Signs that the attack was too weak, as `EvaluationResult.flags` has them."""
        return self.evaluation.flags

    @property
    def notes(self) -> tuple[str, ...]:
        """What to know of the model and how it was taken, a line each."""
        return self.evaluation.notes

    def __str__(self) -> str:
        label = self.evaluation.cells[0][0].attack["label"]
        found, right = self.distance[self.success], int(self.clean_correct.sum())
        text = (
            f"{label} fools the model on {int(self.success.sum())} of {right} images that it gets right ({len(self)} in all)"
        )
        if len(found):
            text += f", at a median distance of {float(found.quantile(0.5)):.4g}"
        return f"{text}; forwards per image: {float(self.forwards.double().mean()):.4g}"


def attack(
    attack: str | Spec | Mapping[str, object],
    model: nn.Module,
    x: Tensor | ArrayLike,
    y: Tensor | ArrayLike,
    *,
    norm: str = "linf",
    epsilon: float | str | None = None,
    mean: Sequence[float] = (),
    std: Sequence[float] = (),
    outputs: Outputs | None = None,
    stochastic: bool = False,
    draws: int | None = None,
    held_out: tuple[Tensor | ArrayLike, Tensor | ArrayLike] | None = None,
    seed: int = 0,
    batch: int | None = None,
) -> AttackResult:
    """Attack a model and return the adversarial images, verified, with what is known of each.

    attack: one attack, such as ``"pgd(steps=100)"``, ``"auto"`` or ``"foolbox/LinfPGD"``. A minimal-norm attack takes an
    epsilon too: it is what `success` counts within.
    model: images (n, c, h, w) in [0, 1] -> logits (n, classes), attacked where it is and left unchanged; looked at first as
    by `advbench.evaluate`. x, y: images (n, c, h, w) in [0, 1] and labels (n,).
    norm: ``linf``, ``l2`` or ``l1``, or ``none`` for corruptions. epsilon: in pixel units of [0, 1].
    mean, std, outputs, stochastic, draws, held_out, seed, batch: as in `advbench.evaluate`.

    Raises ValueError, in one line, for what does not fit, AttackError if the attack fails or breaks the threat, and
    KeyboardInterrupt after Ctrl-C.

    Two pixels are compared: the nearest image that the model gets wrong is half their difference away.

    >>> import torch
    >>> model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    >>> model[1].weight.data = torch.eye(2)
    >>> x = torch.tensor([[0.9, 0.1], [0.45, 0.55]]).view(2, 1, 1, 2)
    >>> result = attack("pgd(steps=20)", model, x, torch.tensor([0, 1]), epsilon=0.1, batch=2)
    >>> result.success.tolist(), result.x_adv.shape
    ([False, True], torch.Size([2, 1, 1, 2]))
    """
    own = Own(mean=tuple(map(float, mean)), std=tuple(map(float, std)), stochastic=stochastic)
    validation = split_of(*held_out) if held_out is not None else None
    live = Live(model, split_of(x, y), own, "model", validation, outputs, draws, batch)
    with temporary_folder() as folder:
        result = evaluate_live(live, folder, [_one(attack)], alone=True, norm=norm, epsilon=epsilon, seed=seed)
        if result.interrupted:
            raise KeyboardInterrupt
        record, examples = result.cells[0]
        if examples is None:
            raise AttackError(f"{record.attack['label']}: {record.reason}")
        found = images_of(folder, record, examples, live.test.x)
    like = x if isinstance(x, Tensor) else live.test.x
    with torch.inference_mode(False):
        margin, prediction = margins(live, found.x_adv, seed)
    facts = {name: getattr(found, name) for name in ("success", "clean_correct", "distance", *_COUNTS)}
    facts |= {"margin": margin, "prediction": prediction}
    return AttackResult(
        x_adv=found.x_adv.to(like.device, like.dtype),
        **{name: value.to(like.device) for name, value in facts.items()},
        evaluation=result,
    )


_COUNTS = ("forwards", "backwards", "queries")


def margins(live: Live, x_adv: Tensor, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Margins (n,) float64 and labels (n,) int64 of a model's answers for images x_adv, (n, c, h, w), on the CPU."""
    answers = []
    with as_it_came(live.model), torch.no_grad():
        model = live.looked_at().model
        device = next((value.device for value in (*live.model.parameters(), *live.model.buffers())), torch.device("cpu"))
        for start in range(0, len(x_adv), _AT_ONCE):
            part = Split(x_adv, live.test.y, live.test.index).select(slice(start, start + _AT_ONCE)).to(device)
            if live.own.stochastic:
                rng = ExampleRNG.make(seed, "report", part.index)
                answers.append(Blockwise(model, block=live.own.block)(part.x, rng).cpu())
            else:
                answers.append(model(part.x).cpu())
    logits = torch.cat(answers).double()
    y = live.test.y[:, None]
    others = logits.scatter(1, y, -torch.inf).amax(dim=1)
    return logits.gather(1, y).squeeze(1) - others, logits.argmax(dim=1)


def _one(attack: object) -> Spec | str | Mapping[str, object]:
    """The attack, if it is one. ValueError, in one line, for a list and what is no attack."""
    if isinstance(attack, str | Spec | Mapping):
        return attack
    raise ValueError(f"Expected one attack such as 'pgd(steps=100)', got {attack!r:.80}")
