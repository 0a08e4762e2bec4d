"""Signs that an evaluation is incomplete: misleading gradients, attacks that fail where they should not, a lone detector.

Each check follows a known symptom of masked gradients (Athalye et al. 2018, arXiv:1802.00420; Carlini et al. 2019,
arXiv:1902.06705), or of robustness that hangs on a detector (Carlini & Wagner 2017, arXiv:1705.07263). A flag proves nothing
about the model: it says that the robust accuracy beside it is an upper bound, and what to run next. Training seeds are
pooled: a pair is one example of one seed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from advbench.results.record import Examples, Record
from advbench.results.significance import binomial_tail, exact_mcnemar
from advbench.results.statistics import Outcome, clean_correct, within, worst_case
from advbench.results.unit_tests import PASSED, together

P_VALUE = 0.01
"""The level below which a difference is significant."""
POINTS = 0.01
"""What a difference must exceed to matter: one point."""
RESTARTS = 0.05
"""What more restarts may gain before they are said to matter much."""
SHARE = 0.05
"""The share of looked-at images that may have no gradient, or no rising loss, before it is flagged."""
COIN = 0.05
"""How often a fair coin may show as many draws as an image of a random model must withstand to count as not reached."""
GREY = 0.5
"""The linf epsilon from which every image can be made grey, so that no classifier can tell them apart."""

CARLINI = "Carlini et al. 2019, arXiv:1902.06705"
BYPASSED = "Carlini & Wagner 2017, arXiv:1705.07263"
ADAPTIVE = "Tramer et al. 2020, arXiv:2002.08347"
ZIMMERMANN = "Zimmermann et al. 2022, arXiv:2206.13991"
ATHALYE = "Athalye et al. 2018, arXiv:1802.00420"

NOISE, ONE_STEP, SCORES, DECISIONS = "noise", "one gradient step", "score-based", "decision-based"
"""Families of attacks, as records name them."""

FAMILIES: Mapping[str, str] = {
    **dict.fromkeys(("uniform-noise", "correlated-noise", "estimated-noise"), NOISE),
    **dict.fromkeys(("fgm", "fgsm", "r-fgsm"), ONE_STEP),
    "square": SCORES,
    "hop-skip-jump": DECISIONS,
}
"""The families, by registry name, of attacks in records that do not name them; all others follow gradients."""

ON_MARGINS = frozenset(
    {
        "apgd-dlr",
        "apgd-t",
        "auto",
        "autoattack",
        "autoattack-rand",
        "carlini-wagner",
        "deepfool",
        "fab",
        "fab-t",
        "worst-case",
    }
)
"""Attacks, by registry name, of which at least a part ascends differences of logits, which do not saturate."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flag:
    """One reason why an evaluation is incomplete.

    name: short and stable. finding: the symptom. measured: the numbers. n: on how many examples. why: what it means. paper:
    who says so. remedy: what to run next.
    """

    name: str
    finding: str
    measured: str
    n: int
    why: str
    paper: str
    remedy: str


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of one target at one threat.

    outcomes: its scored cells at `epsilon`. others: its cells at other epsilons of the same norm, on the same images.
    """

    outcomes: Sequence[Outcome]
    epsilon: float | None
    others: Sequence[Outcome] = ()

    def those(self, wanted: Callable[[Record], bool]) -> list[Outcome]:
        """The outcomes at `epsilon` whose record is `wanted`."""
        return [outcome for outcome in self.outcomes if wanted(outcome[0])]


@dataclass(frozen=True, slots=True)
class Paired:
    """Two attackers on the same examples: how many of `n` each alone broke."""

    first: int
    second: int
    n: int

    @property
    def gain(self) -> float:
        """By how much the first attacker's success exceeds the second's, a share of all examples."""
        return (self.first - self.second) / self.n

    @property
    def p(self) -> float:
        """Two-sided p-value of the exact McNemar test (McNemar 1947): under the null each discordant pair is a fair coin."""
        return float(exact_mcnemar(self.first, self.second))

    def clear(self, points: float = POINTS) -> bool:
        """Whether the first is better by more than `points`, and not by accident."""
        return self.gain > points and self.p < P_VALUE

    def __str__(self) -> str:
        chance = "p < 0.0001" if self.p < 1e-4 else f"p = {self.p:.2g}"
        return f"{self.first} images that the other leaves, against {self.second} ({chance}, exact McNemar)"


def flags(outcomes: Sequence[Outcome], epsilon: float | None, others: Sequence[Outcome] = ()) -> tuple[Flag, ...]:
    """The flags of one target at one threat, none if nothing is suspicious.

    outcomes: all of its scored cells there, of any training seeds. epsilon: None for corruptions. others: its cells at other
    epsilons of the same norm. Raises ValueError if cells of a seed are of different examples.
    """
    evidence = Evidence(outcomes, epsilon, others)
    checked = (check(evidence) for check in CHECKS)
    return tuple(flag for flag in checked if flag is not None)


def black_box_beats_white_box(evidence: Evidence) -> Flag | None:
    """Attacks without gradients break what those with gradients do not."""
    pair = _compare(evidence.those(lambda record: not _gradients(record)), evidence.those(_gradients), evidence.epsilon)
    if pair is None or not pair.clear():
        return None
    return Flag(
        name="black-box beats white-box",
        finding="All black-box and transfer attacks together beat all white-box attacks together",
        measured=f"black-box success is {_points(pair.gain)} higher: {pair}",
        n=pair.n,
        why="An attacker who knows the gradients knows more. Where that does not help, the gradients mislead.",
        paper=f"{ATHALYE}; {CARLINI}",
        remedy="Attack with gradients that the defense does not break: a BPDA or smoothed surrogate, margin losses "
        "(auto, apgd-dlr), more steps and restarts, EOT where anything is random.",
    )


def one_step_beats_many(evidence: Evidence) -> Flag | None:
    """Single-step attacks break what iterated ones do not."""
    single = evidence.those(lambda record: _gradients(record) and record.source is None and _single(record))
    pair = _compare(single, evidence.those(_iterated), evidence.epsilon)
    if pair is None or not pair.clear():
        return None
    return Flag(
        name="one step beats many",
        finding="Single-step attacks beat iterated ones in the same ball",
        measured=f"one step succeeds {_points(pair.gain)} more often: {pair}",
        n=pair.n,
        why="Many steps can do all that one can. Where they do worse, the loss surface is bent around the images.",
        paper=f"{ATHALYE}; {CARLINI}",
        remedy="Run pgd with more steps, smaller steps and restarts, auto, and a gradient-free attack such as square.",
    )


def noise_finds_more(evidence: Evidence) -> Flag | None:
    """Random noise breaks images that no gradient attack breaks."""
    noise = evidence.those(lambda record: _family(record) == NOISE)
    pair = _compare(noise, evidence.those(_gradients), evidence.epsilon)
    if pair is None or not _exceeds(pair.first, pair.n, POINTS):
        return None
    return Flag(
        name="noise finds what gradients miss",
        finding="Random noise breaks images that every gradient attack left",
        measured=f"{pair.first} of {pair.n} images ({_percent(pair.first, pair.n)}) fall to noise alone",
        n=pair.n,
        why="Noise does not search. Errors that it finds in the ball should be easy for a search.",
        paper=CARLINI,
        remedy="Run gradient attacks from random starts with restarts, and a gradient-free attack such as square.",
    )


def fails_without_bound(evidence: Evidence) -> Flag | None:
    """Attacks of any distance do not reach every image; of a random model, those that withstand nearly all draws count."""
    cells = evidence.those(lambda record: record.attack["minimal_norm"])
    alone: dict[str, list[NDArray[np.bool_]]] = {}
    left, chance = [], 0.0
    for outcomes in _by_seed(cells).values():
        attacked = clean_correct(outcomes[0][1]) & ~np.isnan(outcomes[0][1].distance_l2)
        found = [_unreached(examples) for _, examples in outcomes]
        left.append(np.all([unreached for unreached, _ in found], axis=0)[attacked])
        chance = max(chance, *(by_chance for _, by_chance in found))
        for (record, _), (unreached, _) in zip(outcomes, found, strict=True):
            alone.setdefault(record.attack["label"], []).append(unreached[attacked])
    failed, n = sum(int(one.sum()) for one in left), sum(len(one) for one in left)
    if not _exceeds(failed, n, max(POINTS, chance)):
        return _survives_grey(evidence)
    shares = {label: np.concatenate(parts).mean() for label, parts in alone.items()}
    each = "" if len(shares) == 1 else f" ({', '.join(f'{label} {_percent(one, 1)}' for label, one in shares.items())})"
    return Flag(
        name="unbounded attacks fail",
        finding="Minimal-norm attacks, which no epsilon bounds, do not reach all images",
        measured=f"{failed} of {n} clean-correct images ({_percent(failed, n)}) survive every one of them at any distance"
        + each,
        n=n,
        why="Without a bound every image can be turned into one of another class, so that only a failed search leaves any.",
        paper=f"{ATHALYE}; {CARLINI}",
        remedy="Run another minimal-norm attack (fmn, ddn, carlini-wagner, hop-skip-jump) with more steps, with more draws "
        "where the model is random, and through another surrogate of a purifier.",
    )


def _unreached(examples: Examples) -> tuple[NDArray[np.bool_], float]:
    """Which images a minimal-norm attack has not reached, (n,), and how often chance alone says so of a reached one.

    The smallest perturbation of a random model fools it about every other time. So an image counts as not reached only if
    it withstands so many of the report draws that a fair coin would seldom show as many (`COIN`).
    """
    failed: NDArray[np.bool_] = np.isinf(examples.distance_l2)
    if examples.draws == 1:
        return failed, 0.0
    withstood = examples.report_correct.astype(np.int64)
    tails = binomial_tail(withstood, np.full(len(withstood), examples.draws), 0.5)
    rare = failed & (tails <= COIN)
    counts = binomial_tail(np.arange(examples.draws + 1), np.full(examples.draws + 1, examples.draws), 0.5)
    return rare, float(counts[counts <= COIN].max(initial=0.0))


def _survives_grey(evidence: Evidence) -> Flag | None:
    """Robust accuracy above that of a constant answer, at an epsilon at which every image can be made the same grey one."""
    cells = [
        outcome
        for outcome in (*evidence.outcomes, *evidence.others)
        if outcome[0].threat["norm"] == "linf" and (outcome[0].threat["epsilon"] or 0) >= GREY and _iterated(outcome[0])
    ]
    groups: dict[float, list[Outcome]] = {}
    for outcome in cells:
        groups.setdefault(outcome[0].threat["epsilon"] or 0.0, []).append(outcome)
    for epsilon, group in sorted(groups.items()):
        robust = ~np.concatenate([_broken(outcomes, epsilon) for outcomes in _by_seed(group).values()])
        _, counts = np.unique(group[0][1].label, return_counts=True)
        constant = counts.max() / counts.sum()
        if _exceeds(int(robust.sum()), len(robust), constant) and robust.mean() > constant + POINTS:
            return Flag(
                name="unbounded attacks fail",
                finding=f"Images stay correct under linf ≤ {epsilon:g}, where each can be made the same grey",
                measured=f"{robust.sum()} of {len(robust)} images ({_percent(robust.sum(), len(robust))}) are left, a "
                f"constant answer would be right on {_percent(constant, 1)}",
                n=len(robust),
                why="One grey image is within reach of all of them, and a classifier can give it one label only.",
                paper=f"{ATHALYE}; {CARLINI}",
                remedy="Run pgd with more steps and restarts, auto, and a gradient-free attack such as square.",
            )
    return None


def no_growth_with_epsilon(evidence: Evidence) -> Flag | None:
    """A larger ball gives an iterated attack nothing, although the smaller one already broke some images and left others."""
    for smaller, larger in _by_epsilon(evidence):
        pair = _compare(smaller, larger, None)
        if pair is None:
            continue
        epsilons = [outcomes[0][0].threat["epsilon"] or 0.0 for outcomes in (smaller, larger)]
        label = larger[0][0].attack["label"]
        if pair.clear() or _stalled(smaller, larger, pair, epsilons):
            return Flag(
                name="no growth with epsilon",
                finding=f"The success of {label} does not grow from epsilon {epsilons[0]:g} to {epsilons[1]:g}",
                measured=f"{pair.first} images fall at the smaller epsilon alone, {pair.second} at the larger alone",
                n=pair.n,
                why="A larger ball holds the smaller one, so that success can only grow.",
                paper=CARLINI,
                remedy="Run more steps and restarts at the larger epsilon, auto, and a minimal-norm attack such as fmn.",
            )
    return None


def no_growth_with_steps(evidence: Evidence) -> Flag | None:
    """More steps of the same attack break clearly fewer images."""
    for fewer, more in _variants(evidence, "steps"):
        pair = _compare(fewer, more, evidence.epsilon)
        if pair is not None and pair.clear():
            counts = [outcomes[0][0].attack["arguments"]["steps"] for outcomes in (fewer, more)]
            return Flag(
                name="no growth with steps",
                finding=f"{more[0][0].attack['name']} succeeds less often with {counts[1]} steps than with {counts[0]}",
                measured=f"fewer steps succeed {_points(pair.gain)} more often: {pair}",
                n=pair.n,
                why="A longer search that ends worse is led astray, or its steps are not fit for the surface.",
                paper=CARLINI,
                remedy="Run smaller steps, restarts, and an attack that adapts its step (apgd-ce, auto).",
            )
    return None


def restarts_matter(evidence: Evidence) -> Flag | None:
    """More random starts break many more images."""
    for fewer, more in _variants(evidence, "restarts"):
        pair = _compare(more, fewer, evidence.epsilon)
        if pair is not None and pair.clear(RESTARTS):
            counts = [outcomes[0][0].attack["arguments"]["restarts"] for outcomes in (fewer, more)]
            return Flag(
                name="restarts matter much",
                finding=f"{more[0][0].attack['name']} with {counts[1]} restarts beats the same with {counts[0]} by far",
                measured=f"more restarts succeed {_points(pair.gain)} more often: {pair}",
                n=pair.n,
                why="Where the start decides, the surface is rugged, and still more starts would find still more.",
                paper=CARLINI,
                remedy="Run many more restarts until success no longer grows, and a gradient-free attack such as square.",
            )
    return None


def gradients_vanish(evidence: Evidence) -> Flag | None:
    """At many clean images the gradient is exactly zero."""
    counts = _diagnosis(evidence, "zero_margin_gradient")
    what = "the margin between the logits"
    blind = not any(record.attack["name"] in ON_MARGINS for record, _ in evidence.outcomes if _gradients(record))
    if blind and not _exceeds(*counts, SHARE):
        counts, what = _diagnosis(evidence, "zero_gradient"), "the cross-entropy, which all attacks here ascend,"
    if not _exceeds(*counts, SHARE):
        return None
    return Flag(
        name="zero gradients",
        finding=f"The gradient of {what} is exactly zero at many images",
        measured=f"{counts[0]} of {counts[1]} clean-correct images ({_percent(*counts)}) have no gradient at all",
        n=counts[1],
        why="A gradient attack cannot leave such an image, whether or not there are errors beside it.",
        paper=f"{ATHALYE}; {CARLINI}",
        remedy="Run attacks on margins (auto, apgd-dlr), a surrogate that has gradients (BPDA), and square.",
    )


def gradients_not_finite(evidence: Evidence) -> Flag | None:
    """At an image or on the way uphill from it a component of the gradient is NaN or infinite; one image is enough."""
    broken, n = _diagnosis(evidence, "nonfinite_gradient")
    if broken == 0:
        return None
    return Flag(
        name="non-finite gradients",
        finding="Gradients are NaN or infinite at images or on the way uphill from them",
        measured=f"on {broken} of {n} clean-correct images ({_percent(broken, n)}) a component is no finite number",
        n=n,
        why="Attacks take the slopes half a grey level beside these values, which are others than the model's; where those "
        "are no numbers either, they read NaN as zero and do not move the values.",
        paper=ATHALYE,
        remedy="Run gradient-free attacks (square, hop-skip-jump), or a surrogate with finite gradients: a small constant "
        "inside roots, logarithms and powers, which have no finite slope at black pixels.",
    )


def loss_does_not_rise(evidence: Evidence) -> Flag | None:
    """Ten steps uphill do not raise the loss."""
    counts = _diagnosis(evidence, "flat")
    if not _exceeds(*counts, SHARE):
        return None
    return Flag(
        name="loss does not rise",
        finding="The loss does not rise along the attack",
        measured=f"on {counts[0]} of {counts[1]} clean-correct images ({_percent(*counts)}) "
        "ten gradient steps do not raise it",
        n=counts[1],
        why="Gradient ascent that does not ascend is led by gradients that are wrong, or by none.",
        paper=f"{ATHALYE}; {CARLINI}",
        remedy="Check the surrogate's gradient against finite differences; run BPDA, EOT, and square.",
    )


def probabilities_as_outputs(evidence: Evidence) -> Flag | None:
    """The model returns probabilities where logits are attacked."""
    found, n = _diagnosis(evidence, "probabilities")
    if found == 0:
        return None
    return Flag(
        name="probabilities as outputs",
        finding="The model returns probabilities, and they were attacked as if they were logits",
        measured=f"on {found} of {n} clean-correct images ({_percent(found, n)}) no output is negative and they sum to 1",
        n=n,
        why="A softmax that is sure of itself has no gradient left, and a second one in the loss flattens the rest.",
        paper=CARLINI,
        remedy='Declare what the model returns: --outputs probabilities (outputs="probabilities" in Python, '
        'outputs = "probabilities" in a TOML file) attacks through the logarithm; or return logits.',
    )


def undeclared_randomness(evidence: Evidence) -> Flag | None:
    """A model that is declared deterministic answers the same images differently."""
    unstable, n = _diagnosis(evidence, "unstable")
    if unstable == 0:
        return None
    return Flag(
        name="undeclared randomness",
        finding="The model is declared deterministic, but two passes over the same images differ",
        measured=f"the logits of {unstable} of {n} images changed",
        n=n,
        why="Random answers make single gradients noise and single verdicts luck; such a model needs EOT and several draws.",
        paper=ATHALYE,
        remedy="Declare the model stochastic (a defense's `stochastic=True`), and run it again.",
    )


def rests_on_detector(evidence: Evidence) -> Flag | None:
    """Of the images that count as robust, many fool the classifier, and only the detector stands."""
    fooled, n, total = 0, 0, 0
    for outcomes in _by_seed(evidence.outcomes).values():
        rejected = [_only_rejected(record, examples, evidence) for record, examples in outcomes if examples.detected]
        if rejected:
            robust = ~_broken(outcomes, evidence.epsilon)
            fooled += int((robust & np.any(rejected, axis=0)).sum())
            n += int(robust.sum())
            total += len(robust)
    if not _exceeds(fooled, n, SHARE):
        return None
    return Flag(
        name="rests on the detector",
        finding="The classifier is fooled on images that count as robust: the detector alone stands there",
        measured=f"{fooled} of {n} robust images ({_percent(fooled, n)}) have an adversarial that is misclassified and only "
        f"rejected; without the detector {_percent(n - fooled, total)} at most would be robust",
        n=n,
        why="Such an image is robust only until the detector is evaded. Most detectors are, by an attack that is made for "
        "them, so that the number is an upper bound.",
        paper=f"{BYPASSED}; {ADAPTIVE}",
        remedy="Look at the detector with an attack made for it: more steps and restarts that hold the error while the "
        "score falls, a surrogate for what gives no gradients in it (BPDA), and square and hop-skip-jump, which ask it too.",
    )


def unit_test_failed(evidence: Evidence) -> Flag | None:
    """The attacks miss adversarial images that are known to exist."""
    found, built = together(record for record, _ in evidence.outcomes)
    if not built or found / built >= PASSED:
        return None
    return Flag(
        name="failed unit test",
        finding="The evaluation failed its unit test: the attacks miss adversarial images that are known to exist",
        measured=f"all attacks together found {found} of {built} planted ones ({_percent(found, built)}); "
        f"{100 * PASSED:.0f}% is the least",
        n=built,
        why="The planted images fool the same defended pipeline with another last layer. Attacks that miss these may "
        "miss as many of the model itself.",
        paper=ZIMMERMANN,
        remedy="Run stronger attacks until the unit test passes: more steps and restarts, margin losses (auto, apgd-dlr), a "
        "surrogate that has gradients (BPDA), EOT with more draws, and square.",
    )


def no_gradients(evidence: Evidence) -> Flag | None:
    """A user's model that no attack with gradients was run on."""
    records = [record for record, _ in evidence.outcomes]
    own = [record for record in records if record.target["defense"]["name"] == "own" and record.threat["norm"] != "none"]
    if not own or any(_gradients(record) for record in own):
        return None
    return Flag(
        name="no gradients",
        finding="Only attacks without gradients were run",
        measured=f"{', '.join(sorted({record.attack['label'] for record in own}))}",
        n=len(evidence.outcomes[0][1]),
        why="Attacks that ask for scores or labels break fewer images than those that follow gradients.",
        paper=CARLINI,
        remedy="Run auto on the model in a form that gives gradients, such as a torch module or an ONNX file of plain "
        "operators.",
    )


CHECKS: tuple[Callable[[Evidence], Flag | None], ...] = (
    black_box_beats_white_box,
    one_step_beats_many,
    noise_finds_more,
    fails_without_bound,
    no_growth_with_epsilon,
    no_growth_with_steps,
    restarts_matter,
    gradients_vanish,
    gradients_not_finite,
    loss_does_not_rise,
    probabilities_as_outputs,
    undeclared_randomness,
    rests_on_detector,
    unit_test_failed,
    no_gradients,
)


def _gradients(record: Record) -> bool:
    """Whether the attacker used the target's own gradients: the white-box matrix, or a transfer of a model to itself."""
    itself = record.source is not None and record.matrix == "transfer" and record.source["label"] == record.target["label"]
    known = record.attack.get("gradients", _family(record) not in (NOISE, SCORES, DECISIONS))
    return bool(record.source is None or itself) and bool(known)


def _family(record: Record) -> str:
    """The family of the attack; empty where an older record does not name it and it follows gradients."""
    return str(record.attack.get("family", FAMILIES.get(record.attack["name"], "")))


def _single(record: Record) -> bool:
    return _family(record) == ONE_STEP or record.attack["arguments"].get("steps") == 1


def _iterated(record: Record) -> bool:
    """Whether a white-box attack takes several steps within a fixed epsilon."""
    return _gradients(record) and record.source is None and not _single(record) and not record.attack["minimal_norm"]


def _by_seed(outcomes: Iterable[Outcome]) -> dict[int, list[Outcome]]:
    groups: dict[int, list[Outcome]] = {}
    for outcome in outcomes:
        groups.setdefault(outcome[0].seed, []).append(outcome)
    return groups


def _broken(outcomes: Sequence[Outcome], epsilon: float | None) -> NDArray[np.bool_]:
    """Which examples the attackers together break, for a stochastic model in most of its reported draws; shape (n,)."""
    broken: NDArray[np.bool_] = worst_case(outcomes, epsilon).values < 0.5
    return broken


def _only_rejected(record: Record, examples: Examples, evidence: Evidence) -> NDArray[np.bool_]:
    """For which examples a candidate within epsilon fooled the model, in most draws, and was rejected; shape (n,)."""
    fooled: NDArray[np.bool_] = 2 * examples.fooled_rejected > examples.draws
    if record.attack["minimal_norm"] and record.threat["epsilon"] is None:
        return fooled & within(record, examples, evidence.epsilon)
    return fooled


def _compare(first: Iterable[Outcome], second: Iterable[Outcome], epsilon: float | None) -> Paired | None:
    """Two attackers, each the worst case over its cells, on the seeds that both have; None if they share none."""
    of_first, of_second = _by_seed(first), _by_seed(second)
    seeds = [seed for seed in of_first if seed in of_second]
    if not seeds:
        return None
    pairs = [(_broken(of_first[seed], epsilon), _broken(of_second[seed], epsilon)) for seed in seeds]
    a, b = (np.concatenate(column) for column in zip(*pairs, strict=True))
    return Paired(int((a & ~b).sum()), int((b & ~a).sum()), len(a))


def _by_epsilon(evidence: Evidence) -> Iterable[tuple[list[Outcome], list[Outcome]]]:
    """Each iterated attack at the next smaller epsilon, and at the evidence's own."""
    if evidence.epsilon is None:
        return
    groups: dict[str, dict[float, list[Outcome]]] = {}
    for outcome in (*evidence.outcomes, *evidence.others):
        epsilon = outcome[0].threat["epsilon"]
        if _iterated(outcome[0]) and epsilon is not None and epsilon <= evidence.epsilon:
            groups.setdefault(outcome[0].attack["label"], {}).setdefault(epsilon, []).append(outcome)
    for by_epsilon in groups.values():
        for smaller, larger in pairwise(sorted(by_epsilon)):
            if larger == evidence.epsilon:
                yield by_epsilon[smaller], by_epsilon[larger]


def _stalled(smaller: Sequence[Outcome], larger: Sequence[Outcome], pair: Paired, epsilons: Sequence[float]) -> bool:
    """Whether an attack broke some at the smaller epsilon, and at a half larger one leaves a tenth and gains nothing."""
    clean = np.mean([(examples.clean_correct > 0).mean() for _, examples in smaller])
    before, after = (
        1 - np.mean([_broken([outcome], None).mean() for outcome in outcomes]) for outcomes in (smaller, larger)
    )
    return bool(epsilons[1] >= 1.5 * epsilons[0] and clean - before > SHARE and after > 0.1 and -pair.gain <= POINTS / 10)


def _variants(evidence: Evidence, argument: str) -> Iterable[tuple[list[Outcome], list[Outcome]]]:
    """Pairs of iterated attacks that differ in one number alone, from the smaller to the larger."""
    groups: dict[str, dict[int, list[Outcome]]] = {}
    for outcome in evidence.those(_iterated):
        attack = outcome[0].attack
        value = attack["arguments"].get(argument)
        if isinstance(value, int):
            rest = {name: other for name, other in attack["arguments"].items() if name != argument}
            same = json.dumps([attack["name"], rest], sort_keys=True)
            groups.setdefault(same, {}).setdefault(value, []).append(outcome)
    for values in groups.values():
        for smaller, larger in pairwise(sorted(values)):
            yield values[smaller], values[larger]


def _diagnosis(evidence: Evidence, name: str) -> tuple[int, int]:
    """A count of the harness's diagnosis and of how many images, summed over seeds; zeros if no record holds one."""
    counts: dict[int, tuple[int, int]] = {}
    for record, _ in evidence.outcomes:
        diagnosis: Mapping[str, int] = record.details.get("diagnosis") or {}
        if name in diagnosis:
            counts[record.seed] = int(diagnosis[name]), int(diagnosis["images"])
    return sum(count for count, _ in counts.values()), sum(images for _, images in counts.values())


def _exceeds(k: int, n: int, share: float) -> bool:
    """Whether `k` of `n` is more than `share`, and not by accident."""
    return n > 0 and float(binomial_tail(k, n, share)) < P_VALUE


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"


def _percent(k: float, n: float) -> str:
    return f"{100 * k / n:.1f}%"
