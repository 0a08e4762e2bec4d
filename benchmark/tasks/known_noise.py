"""Known noise: how a random model does against an attacker who knows the draws that it is scored under.

A random model is scored on fresh draws, which no attacker knows. For one fixed draw it is a deterministic model, whose exact
gradient an attacker could follow who knew it (arXiv:2404.14309). What withstands even then owes it to the
model; what does not owes it to the attacker's ignorance. It is a diagnostic, which counts in no ranking.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.attacks.access import PerExample, frozen
from advbench.attacks.attack import Attack
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel
from advbench.attacks.watch import NOT_WATCHED, WatchSettings
from advbench.defenses.defended import Defended, Surrogate
from advbench.tasks.artefacts import Kind, artefact, read, save
from advbench.tasks.context import Context, data_of, defended_of
from advbench.tasks.craft import CraftContent, ready_attack
from advbench.tasks.evaluation import craft
from advbench.tasks.images import Images, scored_split
from advbench.tasks.surrogates import surrogate_of
from advbench.zoo.data import Split


@dataclass(frozen=True, slots=True)
class KnownNoiseContent:
    """What the answers of a random model under known draws depend on.

    target: key of the training of the model. candidate: the craft whose attack and surrogate are taken, once for each draw.
    draws: the report draws that are known, from the first. images: the scored ones.
    """

    kind: ClassVar[Kind] = "known-noise"

    target: str
    candidate: CraftContent
    draws: int
    images: Images

    @property
    def needs(self) -> tuple[str, ...]:
        """The model, and the calibrations of the attack and of its surrogate."""
        return tuple(dict.fromkeys((self.target, *self.candidate.needs)))

    def label(self, attack: str, target: str) -> str:
        """For people: the attack and the model as the user names them."""
        return f"known noise, {attack} on {target}"


class KnownDraw(PerExample):
    """A random model at one of its report draws: called as ``model(x, rng)``, of which it takes the index alone.

    seed: of the report draws. draw: which.
    """

    def __init__(self, model: nn.Module, seed: int, draw: int) -> None:
        super().__init__()
        self.model, self.seed, self.draw = model, seed, draw

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        """Logits (n, classes), those that the images x (n, c, h, w) have when this draw is reported."""
        logits: Tensor = self.model(x, ExampleRNG.make(self.seed, "report", rng.index).at(self.draw))
        return logits


def run(key: str, content: KnownNoiseContent, context: Context, device: torch.device) -> None:
    """Attack the model at each known draw; if that fails, the artefact says why, and the cell keeps its number."""
    candidate, place = content.candidate, artefact("known-noise", key, context.out)
    try:
        defended = defended_of(content.target, context, device)
        found = withstood(
            defended,
            surrogate_of(defended, candidate.attacked.surrogate),
            ready_attack(candidate, context),
            scored_split(data_of(context), content.images.n),
            candidate.threat,
            draws=content.draws,
            images=content.images,
            device=device,
            watching=replace(candidate.watching, visited=False),
        )
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        return save(place, correct=np.zeros(0, np.int64), reason=np.array(reason, dtype=np.str_))
    return save(place, correct=found.numpy(), reason=np.array("", dtype=np.str_))


def withstood(
    defended: Defended,
    surrogate: Surrogate,
    attack: Attack | None,
    split: Split,
    threat: ThreatModel,
    *,
    draws: int,
    images: Images,
    device: torch.device,
    watching: WatchSettings = NOT_WATCHED,
) -> Tensor:
    """In how many of the first report draws a random model is right about each image, attacked or not, (n,) int64.

    attack: asks the surrogate at the draw that it is scored under, anew for each; None where there is no gradient. Raises
    what the attack raises, and ViolationError for images beyond the threat.
    """
    found = torch.zeros(len(split), dtype=torch.int64)
    for draw in range(draws):
        right = _right(defended, split, images, draw, device)
        if attack is not None:
            known = at_draw(surrogate, images.seed, draw)
            crafted = craft(
                attack,
                known,
                split,
                threat,
                seed=images.seed,
                draws=1,
                batch=images.batch,
                device=device,
                watching=watching,
            )
            right &= _right(defended, Split(crafted.x_adv, split.y, split.index), images, draw, device)
        found += right
    return found


def at_draw(surrogate: Surrogate, seed: int, draw: int) -> Surrogate:
    """A surrogate whose draw is known, a deterministic one; one that is not random as it is."""
    if not surrogate.stochastic:
        return surrogate
    return replace(surrogate, model=KnownDraw(surrogate.model, seed, draw), stochastic=False)


def _right(defended: Defended, split: Split, images: Images, draw: int, device: torch.device) -> Tensor:
    """Whether the scored model is right about images at a report draw, (n,) bool on the CPU."""
    model, found = KnownDraw(defended.model, images.seed, draw), []
    with frozen(model), torch.no_grad():
        for start in range(0, len(split), images.batch):
            part = split.select(slice(start, start + images.batch)).to(device)
            answers = model(part.x.clone(), ExampleRNG.make(images.seed, "report", part.index))
            found.append((answers.argmax(dim=1) == part.y).cpu())
    return torch.cat(found)


def read_known_noise(path: Path) -> tuple[NDArray[np.int64], str]:
    """The draws in which each image withstood an attacker who knew them, (n,), or none and why. DamagedError."""
    found = read(path)
    return found["correct"].astype(np.int64), str(found["reason"])
