"""Craft and score: the attack proposes, the harness verifies.

Nothing here trusts an attack. Every adversarial image is checked for shape, NaN, box and budget, and success is what a
fresh forward pass says (DESIGN invariants 1 and 2).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import Access, DetectorView, Ledger, WhiteBox, frozen
from advbench.attacks.attack import Attack
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Norm, ThreatModel, Untargeted, cross_entropy
from advbench.attacks.watch import NOT_WATCHED, BudgetSpent, Watch, WatchSettings
from advbench.clocks import Measured, stopwatch
from advbench.defenses.defended import Defended, Surrogate
from advbench.defenses.inference.composition import call
from advbench.results.record import Examples
from advbench.results.statistics import TOLERANCE
from advbench.tasks.images import copied
from advbench.zoo.data import Split


class ViolationError(RuntimeError):
    """An attack returned images that the threat model does not allow, or a model answered with NaN."""


@dataclass(frozen=True, slots=True, eq=False)
class Craft:
    """Adversarial images and what they cost.

    x_adv: (n, c, h, w), float32, on the CPU. ledger: counts per example. measured: seconds and peak memory. visited: the
    distances of the best images that the attack asked about, (n,) float64, infinite where none was adversarial, verified by
    a fresh pass; None if nobody watched. watch_seconds: of the seconds, those that keeping and verifying them took.
    """

    x_adv: Tensor
    ledger: Ledger
    measured: Measured
    visited: Tensor | None = None
    watch_seconds: float = 0.0


@dataclass(frozen=True, slots=True, eq=False)
class Counts:
    """How a model answered on some images, counted over draws.

    prediction: (n,) int64, the label that most report draws gave. select, report: (n,) int64, answers of `draws` that are
    correct and that no detector rejects. select_rejected, report_rejected: (n,) int64, answers that a detector rejects.
    wrong: (n,) int64, report draws with a wrong label, rejected or not; fooled: (n,) int64, those of them that a detector
    rejects. score: (n,) float64, the detector's mean score over the report draws; NaN without one.
    """

    prediction: Tensor
    select: Tensor
    report: Tensor
    select_rejected: Tensor
    report_rejected: Tensor
    wrong: Tensor
    fooled: Tensor
    score: Tensor
    draws: int

    @staticmethod
    def of(columns: Iterable[Tensor], draws: int) -> Counts:
        """The counts of eight columns in the order of the fields."""
        prediction, select, report, select_rejected, report_rejected, wrong, fooled, score = columns
        return Counts(prediction, select, report, select_rejected, report_rejected, wrong, fooled, score, draws)

    @property
    def withstood(self) -> tuple[Tensor, Tensor]:
        """Select and report draws, (n,) each, on which an adversarial image has failed: correct or rejected."""
        return self.select + self.select_rejected, self.report + self.report_rejected


@dataclass(frozen=True, slots=True, eq=False)
class Scored:
    """A scored cell: per-example outcomes, the chosen images (n, c, h, w), and the model's labels for them (n,).

    accuracies: the robust accuracy that each of the candidates alone would leave.
    """

    examples: Examples
    x_adv: Tensor
    prediction: Tensor
    accuracies: tuple[float, ...]


_FARTHER_THAN_ANY_IMAGE = 1e12


def craft(
    attack: Attack,
    surrogate: Surrogate,
    split: Split,
    threat: ThreatModel,
    *,
    seed: int,
    draws: int,
    batch: int,
    device: torch.device,
    scale: float = 1.0,
    around: Callable[[Access], AbstractContextManager[object]] = nullcontext,
    watching: WatchSettings = NOT_WATCHED,
) -> Craft:
    """Attack every image of `split` in compute batches, and verify what comes back.

    scale: the worth of a unit of the score of the surrogate's detector in logits. around: what each batch is attacked in,
    given its access, to follow its progress. watching: the budget of passes, and whether what the attack visits is kept.
    The attack sees copies of the images, labels and indices, and the model's parameters and buffers are put back after it:
    what it writes into them bends no other number.
    Raises ViolationError if the attack leaves the budget or the box, changes the shape, or returns NaN.
    """
    _warm_up(surrogate, split, seed=seed, batch=batch, device=device)
    images, ledgers, visited, watch_seconds = [], [], [], 0.0
    with _state_kept(surrogate), stopwatch(device) as measured:
        for start in range(0, len(split), batch):
            part = split.select(slice(start, start + batch)).to(device)
            shown = copied(part)
            rng, goal = ExampleRNG.make(seed, "attack", shown.index), Untargeted(shown.y)
            access = attack.knowledge(
                surrogate.model,
                rng.fork("model"),
                stochastic=surrogate.stochastic,
                draws=draws,
                detector=detector_view(surrogate, shown.y, scale),
            )
            access.watch = watching.begin(part.x, Untargeted(part.y), threat)
            with access, around(access):
                x_adv = _attacked(access, lambda: attack(access, shown.x, goal, threat, rng.fork("attack")))  # noqa: B023
            images.append(verified(x_adv, part, threat).cpu())
            ledgers.append(_paid(access))
            if watching.visited and access.watch is not None:
                begun = time.perf_counter()
                visited.append(_visited(access.watch, surrogate, part, rng.fork("visited")).cpu())
                watch_seconds += access.watch.seconds + time.perf_counter() - begun
    counts = [torch.cat([getattr(one, field) for one in ledgers]).cpu() for field in ("forwards", "backwards", "queries")]
    found = torch.cat(visited) if visited else None
    return Craft(torch.cat(images), Ledger(*counts), measured, found, watch_seconds)


def _attacked(access: Access, attack: Callable[[], Tensor]) -> Tensor:
    """What an attack returns, or what the watch of its access has kept where a budget ended it."""
    if access.watch is None:
        return attack()
    try:
        returned = attack()
    except BudgetSpent:
        return access.watch.settled(None)
    return access.watch.settled(returned)


def _paid(access: Access) -> Ledger:
    """The passes that were asked for, with a budget those that were paid."""
    asked, watch = access.ledger, access.watch
    if watch is None or watch.budget is None:
        return asked
    return Ledger(watch.paid.forwards, watch.paid.backwards, asked.queries.minimum(watch.paid.forwards))


def _visited(watch: Watch, surrogate: Surrogate, part: Split, rng: ExampleRNG) -> Tensor:
    """The distances of the kept images, (n,) float64, infinite where a fresh pass says that they are not adversarial."""
    with WhiteBox(surrogate.model, rng, detector=detector_view(surrogate, part.y)) as access:
        achieved = watch.goal.achieved(access.logits(watch.x_adv))
    distance = balls.distance(watch.x_adv - part.x, watch.threat.norm).double()
    return distance.where(achieved, torch.inf)


@contextmanager
def _state_kept(surrogate: Surrogate) -> Iterator[None]:
    """Put the parameters and buffers of a surrogate and its detector back after the block, after an exception too."""
    modules = [surrogate.model] if surrogate.detector is None else [surrogate.model, surrogate.detector.model]
    state = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    before = [tensor.detach().clone() for tensor in state]
    try:
        yield
    finally:
        for tensor, value in zip(state, before, strict=True):
            if not torch.equal(tensor, value):
                tensor.data.copy_(value)


def detector_view(surrogate: Surrogate, y: Tensor, scale: float = 1.0) -> DetectorView | None:
    """The detector that the attacker of a surrogate evades, for images of the labels y (n,); None if there is none."""
    if surrogate.detector is None:
        return None
    return DetectorView(surrogate.detector.model, y, surrogate.detector.stochastic, scale)


def count(defended: Defended, split: Split, *, seed: int, draws: int, batch: int, device: torch.device) -> Counts:
    """Answers of the scored model on the images of `split`, on `draws` select draws and as many fresh report draws.

    A deterministic model is asked once, and both counts are that one answer.
    """
    passes = draws if defended.stochastic else 1
    parts = []
    modules = [defended.model] if defended.detector is None else [defended.model, defended.detector.model]
    with frozen(nn.ModuleList(modules)), torch.no_grad():
        for start in range(0, len(split), batch):
            part = split.select(slice(start, start + batch)).to(device)
            parts.append(_count(defended, part, seed, passes))
    return Counts.of((torch.cat(columns).cpu() for columns in zip(*parts, strict=True)), passes)


def score(
    defended: Defended,
    split: Split,
    clean: Counts,
    candidates: Sequence[Tensor],
    *,
    norm: Norm,
    minimal_norm: bool,
    epsilon: float | None = None,
    seed: int,
    batch: int,
    device: torch.device,
    visited: Sequence[Tensor | None] = (),
) -> Scored:
    """Score candidate images, the worst per example, on fresh forward passes.

    candidates: one image tensor (n, c, h, w) per surrogate. For a stochastic model the clean image is a candidate too; the
    select draws choose and the report draws count (DESIGN, invariant 2). Of a minimal-norm attack the nearest candidate
    that fools the model is chosen, else the one that fools it most often. A candidate that a detector rejects has failed; a
    clean image that it rejects is lost. epsilon: the radius within which a minimal-norm attack counts, for `accuracies`.
    visited: of each candidate, as `Craft.visited` has it.
    """
    found = [
        count(defended, Split(x_adv, split.y, split.index), seed=seed, draws=clean.draws, batch=batch, device=device)
        for x_adv in candidates
    ]
    withstood, pool = [one.withstood for one in found], list(candidates)
    fooled_rejected = _fooled(found, candidates, split, norm, epsilon if minimal_norm else None)
    accuracies = tuple(
        _accuracy(clean, report, x_adv - split.x, norm, epsilon if minimal_norm else None)
        for (_, report), x_adv in zip(withstood, candidates, strict=True)
    )
    if defended.stochastic:
        found, withstood, pool = [*found, clean], [*withstood, (clean.select, clean.report)], [*pool, split.x]
    select = torch.stack([one for one, _ in withstood])
    preference = select.to(torch.float64)
    if minimal_norm:
        distance = torch.stack([balls.distance(x_adv - split.x, norm) for x_adv in pool]).to(torch.float64)
        preference = torch.where(2 * select < clean.draws, distance, _FARTHER_THAN_ANY_IMAGE + preference)
    choice, rows = preference.argmin(dim=0), torch.arange(len(split))
    x_adv = torch.stack(pool)[choice, rows]
    chosen, report = select[choice, rows], torch.stack([one for _, one in withstood])[choice, rows]
    prediction, rejected, wrong, detector_score = (
        torch.stack([getattr(one, name) for one in found])[choice, rows]
        for name in ("prediction", "report_rejected", "wrong", "score")
    )
    failed = (2 * chosen >= clean.draws) if minimal_norm else torch.zeros(len(split), dtype=torch.bool)
    untouched = (clean.report == 0) & (x_adv == split.x).flatten(1).all(dim=1) & (not defended.stochastic)
    examples = Examples(
        index=split.index.numpy(),
        label=split.y.numpy(),
        clean_prediction=clean.prediction.numpy(),
        draws=clean.draws,
        clean_correct=clean.report.numpy(),
        select_correct=chosen.numpy(),
        report_correct=report.numpy(),
        clean_rejected=clean.report_rejected.numpy(),
        report_rejected=rejected.numpy(),
        report_wrong=wrong.numpy(),
        fooled_rejected=fooled_rejected.numpy(),
        clean_score=clean.score.numpy(),
        report_score=detector_score.numpy(),
        visited=_nearest([one for one in visited if one is not None], len(split)),
        **_distances(x_adv, split.x, failed=failed, untouched=untouched),
    )
    return Scored(examples, x_adv, prediction, accuracies)


def _nearest(visited: Sequence[Tensor], n: int) -> NDArray[np.float64]:
    """The least distances of what several attacks visited, (n,); NaN if none was watched."""
    found = torch.stack(list(visited)).amin(dim=0) if visited else torch.full((n,), torch.nan, dtype=torch.float64)
    values: NDArray[np.float64] = found.numpy()
    return values


def _accuracy(clean: Counts, report: Tensor, delta: Tensor, norm: Norm, epsilon: float | None) -> float:
    """Robust accuracy under one candidate per image: report (n,) withstood draws, delta (n, c, h, w)."""
    if epsilon is not None:
        report = torch.where(_near(delta, norm, epsilon), report, clean.report)
    return float(torch.where(clean.report > 0, report, 0).to(torch.float64).mean()) / clean.draws


def _fooled(
    found: Sequence[Counts], candidates: Sequence[Tensor], split: Split, norm: Norm, epsilon: float | None
) -> Tensor:
    """The most report draws, (n,), in which the model was wrong about a candidate, within epsilon, that was rejected."""
    counts = [
        one.fooled if epsilon is None else one.fooled * _near(x_adv - split.x, norm, epsilon)
        for one, x_adv in zip(found, candidates, strict=True)
    ]
    return torch.stack(counts).amax(dim=0)


def _near(delta: Tensor, norm: Norm, epsilon: float) -> Tensor:
    """Which perturbations (n, c, h, w) lie within epsilon, (n,), bool."""
    return balls.distance(delta, norm).to(torch.float64) <= epsilon * (1 + TOLERANCE)


def _distances(x_adv: Tensor, x: Tensor, *, failed: Tensor, untouched: Tensor) -> dict[str, NDArray[np.float64]]:
    """The distances of a record: infinity where a minimal-norm attack failed, NaN where nothing was attacked."""
    delta = (x_adv - x).to(torch.float64)
    found = {f"distance_{norm}": balls.distance(delta, norm) for norm in ("l0", "l1", "l2", "linf")}
    found["rms"] = found["distance_l2"] / delta[0].numel() ** 0.5 if len(delta) else found["distance_l2"]
    for values in found.values():
        values[failed] = torch.inf
        values[untouched] = torch.nan
    found["image_l2"] = x.to(torch.float64).flatten(1).norm(dim=1)
    return {name: values.numpy() for name, values in found.items()}


def _count(defended: Defended, part: Split, seed: int, passes: int) -> tuple[Tensor, ...]:
    """The fields of `Counts` of one batch, (n,) each, without the number of draws."""
    if not defended.stochastic:
        label, rejected, score = _answer(defended, part.x, None)
        right, rejected, wrong, fooled = (one.to(torch.int64) for one in _became(label, rejected, part.y))
        return label, right, right, rejected, rejected, wrong, fooled, score
    counted: dict[str, tuple[Tensor, ...]] = {}
    for purpose in ("select", "report"):
        streams = (ExampleRNG.make(seed, purpose, part.index).at(draw) for draw in range(passes))
        answers = [_answer(defended, part.x, rng) for rng in streams]
        label, rejected, score = (torch.stack(column) for column in zip(*answers, strict=True))
        counts = (one.sum(dim=0) for one in _became(label, rejected, part.y))
        counted[purpose] = (label.mode(dim=0).values, *counts, score.mean(dim=0))
    _, select, select_rejected, *_ = counted["select"]
    label, report, report_rejected, wrong, fooled, score = counted["report"]
    return label, select, report, select_rejected, report_rejected, wrong, fooled, score


def _became(label: Tensor, rejected: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Which answers are right and accepted, rejected, wrong, and both wrong and rejected; bool, of the shape of `label`."""
    wrong = label != y
    return ~wrong & ~rejected, rejected, wrong, wrong & rejected


def _answer(defended: Defended, x: Tensor, rng: ExampleRNG | None) -> tuple[Tensor, Tensor, Tensor]:
    """Labels (n,) int64, whether a detector rejects (n,) bool, and its scores (n,) float64, NaN without a detector."""
    label = _labels(call(defended.model, x, rng, defended.stochastic))
    if defended.detector is None:
        return label, torch.zeros_like(label, dtype=torch.bool), torch.full_like(label, torch.nan, dtype=torch.float64)
    score = call(defended.detector.model, x, rng, defended.detector.stochastic).to(torch.float64)
    if score.shape != label.shape or not torch.isfinite(score).all():
        raise ViolationError(f"Expected {len(label)} finite scores of the detector, got shape {tuple(score.shape)} or NaN")
    return label, score > 0, score


def _labels(logits: Tensor) -> Tensor:
    if not torch.isfinite(logits).all():
        bad = int((~torch.isfinite(logits)).any(dim=1).sum())
        raise ViolationError(f"Expected finite logits, got NaN or infinity on {bad} of {len(logits)} images")
    return logits.argmax(dim=1)


def verified(x_adv: Tensor, part: Split, threat: ThreatModel) -> Tensor:
    """The images that an attack returned, detached; ViolationError for others than the threat model allows."""
    if x_adv.shape != part.x.shape or x_adv.dtype != part.x.dtype:
        wanted, came = (f"{tuple(one.shape)} {one.dtype}" for one in (part.x, x_adv))
        raise ViolationError(f"Expected adversarial images {wanted}, got {came}")
    bad = balls.violations(x_adv, part.x, threat)
    if bad.any():
        first = int(part.index[bad][0])
        delta = x_adv[bad] - part.x[bad]
        worst = float(balls.distance(delta, threat.norm).max()) if threat.norm != "none" else float(delta.abs().max())
        raise ViolationError(
            f"Expected images within {threat.norm} {threat.epsilon} and the box {threat.box}, got {int(bad.sum())} of "
            f"{len(bad)} outside (worst distance {worst:.6g}, first at example {first})"
        )
    return x_adv.detach()


def _warm_up(surrogate: Surrogate, split: Split, *, seed: int, batch: int, device: torch.device) -> None:
    """One gradient and one look at a few images, uncounted: first-call costs are not timed (DESIGN, invariant 11)."""
    few = copied(split.select(slice(min(batch, 8))).to(device))
    rng, detector = ExampleRNG.make(seed, "warm-up", few.index), detector_view(surrogate, few.y)
    with WhiteBox(surrogate.model, rng, stochastic=surrogate.stochastic, detector=detector) as access:
        with suppress(RuntimeError):  # a model without a gradient can still be attacked with scores or labels
            access.loss_gradient(few.x, Untargeted(few.y), cross_entropy)
        access.logits(few.x)
