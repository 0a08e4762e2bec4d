"""One scored cell: the attack, its target, its cost, and the outcome of every example."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, NotRequired, TypeAlias, TypedDict

import numpy as np
from numpy.typing import NDArray

from advbench.reading import json_of, seen, unseen
from advbench.results import parts

SCHEMA_VERSION = 2
READABLE_VERSIONS = (1, 2)
"""Version 1 knew neither detectors nor the oblivious matrix."""
DISTANCES = ("distance_l0", "distance_l1", "distance_l2", "distance_linf", "rms")
GALLERY_SIZE = 10
Facts: TypeAlias = dict[str, Any]
"""Values that JSON knows: null, booleans, finite numbers, strings, lists, and objects of these."""
Plain: TypeAlias = "bool | int | float | str | Sequence[Plain] | Mapping[str, Plain] | None"
"""The same as types that a checker knows."""


class DatasetPart(TypedDict):
    """The scored images. fingerprint: SHA-256 of the data set; n: how many were scored."""

    name: str
    split: str
    fingerprint: str
    n: int


class ComponentPart(TypedDict):
    """A defense or an architecture, by name and with every argument."""

    name: str
    arguments: Mapping[str, Any]


class TargetPart(TypedDict):
    """The model under attack. label: its name in the run. stochastic: whether its answers are random."""

    label: str
    defense: ComponentPart
    architecture: ComponentPart
    stochastic: bool


class SubstituteName(TypedDict):
    """The architecture of a substitute."""

    name: str


class SourcePart(TypedDict):
    """What the adversarials were crafted on.

    kind: ``surrogate``, ``queries``, ``substitute`` or ``model``. architecture: of the latter two. defense, stochastic: of
    the last.
    """

    label: str
    kind: str
    defense: NotRequired[ComponentPart]
    architecture: NotRequired[ComponentPart | SubstituteName]
    stochastic: NotRequired[bool]


class AttackPart(TypedDict):
    """The attack, by name and with every argument.

    label: its name in the run. minimal_norm: whether its distances count. gradients: whether it differentiates. family: its
    kind, for people; older records lack it. source_hash: of its module. parts: source hashes of the attacks that it is made
    of. identity: what else its results depend on. budget: passes for each image and candidate, after which it was ended;
    there only if there was one.
    """

    label: str
    name: str
    arguments: Mapping[str, Any]
    minimal_norm: bool
    source_hash: str
    gradients: NotRequired[bool]
    family: NotRequired[str]
    parts: NotRequired[Mapping[str, str]]
    identity: NotRequired[str]
    budget: NotRequired[int]


class ThreatPart(TypedDict):
    """The threat model. epsilon: None for no limit. box: the range of pixels, None if nothing clips."""

    norm: str
    epsilon: float | None
    box: list[float] | None


class CountsPart(TypedDict, total=False):
    """Totals over the attacked examples; empty for a cell without numbers."""

    examples: int
    forwards: int
    backwards: int
    queries: int


class SubstitutePart(TypedDict):
    """A substitute. fidelity: the share of held-out images on which it agrees with its target, None if there were none."""

    queries: int
    fidelity: float | None
    sizes: list[int]
    seconds: float


class UnitTestPart(TypedDict):
    """What attacks found of adversarial images that are known to exist (`advbench.results.unit_tests.UnitTestOutcome`)."""

    images: int
    built: int
    found: int
    missed: list[int]
    control: int
    points: int
    probes: dict[str, int | None]
    features: str
    unbuilt: dict[str, int]
    reason: str


class KnownNoisePart(TypedDict):
    """Under an attacker who knows the draws: so many of them, and on how many each image withstood, in order, (n,).

    reason: why nothing is known, and `correct` is empty; an empty text otherwise.
    """

    draws: int
    correct: list[int]
    reason: str


class DetailsPart(TypedDict, total=False):
    """What else is known about a cell.

    compute_batch: images per pass. model_key, crafts: keys of the training and of the crafts. train: the training's budget.
    train_seconds, train_facts: what it took and found. calibration: values found for the attack, those short enough to
    read. preparation: values found for each surrogate. draws: passes averaged per question, by candidate. candidates: the
    robust accuracy that each candidate alone would leave, None for one that gave no gradient. diagnosis: symptoms of the
    gradients and the number of images that were looked at. unit_test: what the attacks found of planted adversarial images.
    known_noise: what a random model answered an attacker who knew its draws.
    precision: of the model's products when the images were crafted and when they were scored; older records have none.
    """

    compute_batch: int
    model_key: str
    crafts: list[str]
    train: dict[str, Any]
    train_seconds: float
    train_facts: dict[str, float | None]
    precision: dict[str, str]
    calibration: list[dict[str, Plain]]
    preparation: dict[str, dict[str, Any]]
    draws: dict[str, int]
    candidates: dict[str, float | None]
    diagnosis: dict[str, int]
    unit_test: UnitTestPart
    known_noise: KnownNoisePart
    substitute: SubstitutePart


class MeasuredPart(TypedDict, total=False):
    """What no comparison of two records looks at: seconds of the attack, bytes, and where it ran.

    watch_seconds: of the seconds, those that keeping what it visited took; there only if it was kept.
    """

    seconds: float
    peak_memory_bytes: int
    device: str
    threads: int
    tasks_beside: int
    environment: Mapping[str, str | bool | None]
    watch_seconds: float


_COUNTED = (
    "clean_correct",
    "select_correct",
    "report_correct",
    "clean_rejected",
    "report_rejected",
    "report_wrong",
    "fooled_rejected",
)
ADDED = frozenset(
    {"clean_rejected", "report_rejected", "report_wrong", "fooled_rejected", "clean_score", "report_score", "visited"}
)
"""The arrays of examples that records of version 1 lack, and of version 2 the first ones ``fooled_rejected``, many
``visited``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One scored cell, or a cell that failed or was skipped. Rates and ranks are derived when read, never stored.

    key: 64 hex digits that name the cell's content. status: ``ok``, ``skipped`` or ``error``, with the `reason` of the
    latter two. matrix: ``white-box``, ``black-box``, ``transfer``, or ``oblivious`` where a defense with test-time parts is
    scored on images of the oblivious attacker, who does not know these parts; it is not ranked.
    dataset: name, split, fingerprint, n. target: label, defense and architecture (name and arguments each), stochastic.
    source: where the adversarials were crafted, with at least label and kind; None in the white-box matrix.
    attack: label, name, arguments, minimal_norm, source_hash. threat: norm, epsilon (None for no limit), box.
    counts: totals over the attacked examples: examples, forwards, backwards, queries.
    details: free facts such as a substitute's fidelity. measured: seconds of the attack, peak memory, device, threads and
    environment, which no comparison of two records looks at.

    Tuples become lists, and control characters and lone surrogates U+FFFD, so that a record equals its own round trip
    through JSON. Raises ValueError for a missing field, a wrong type, a number out of its range (`advbench.results.parts`),
    more than 64 levels, or a value that JSON does not know (NaN and infinity among them).
    """

    key: str
    status: str
    reason: str = ""
    matrix: str
    dataset: DatasetPart
    target: TargetPart
    source: SourcePart | None
    attack: AttackPart
    weights_sha256: str
    threat: ThreatPart
    seed: int
    counts: CountsPart
    details: DetailsPart
    measured: MeasuredPart

    def __post_init__(self) -> None:
        for item in fields(self):
            object.__setattr__(self, item.name, _plain(item.name, getattr(self, item.name)))
        for name, check in parts.FIELDS.items():
            check(name, getattr(self, name))
        if self.matrix == "white-box":
            parts.check_type("source", self.source, (type(None),))
        else:
            parts.SOURCE("source", self.source)
        (parts.COUNTS if self.status == "ok" else parts.ANY_COUNTS)("counts", self.counts)

    def to_json(self) -> str:
        """The record as JSON text with its schema version, keys sorted."""
        return json.dumps({"schema_version": SCHEMA_VERSION, **asdict(self)}, indent=1, sort_keys=True, allow_nan=False)

    @staticmethod
    def from_json(text: str) -> Record:
        """Read what `to_json` wrote. Raises ValueError for anything else; control characters only in the reason are read."""
        try:
            content = json_of(text)
        except ValueError as error:
            raise ValueError(f"Expected a record as JSON, got {error}") from None
        if not isinstance(content, dict):
            raise ValueError(f"Expected a record as a JSON object, got {type(content).__name__}")
        version = content.pop("schema_version", None)
        if isinstance(version, bool) or version not in READABLE_VERSIONS:
            known = " or ".join(map(str, READABLE_VERSIONS))
            raise ValueError(f"Expected a record of schema version {known}, got {version!r}; use a matching advbench")
        names = {field.name for field in fields(Record)}
        for problem, found in (("missing", names - content.keys()), ("unknown", content.keys() - names)):
            if found:
                raise ValueError(f"Expected the fields of a record, got {problem} {', '.join(sorted(found))}")
        if "\\" in text or unseen(text):  # else no text in it can hold what is looked for
            parts.check_texts({name: value for name, value in content.items() if name != "reason"})
        return Record(**content)


def _absent() -> NDArray[Any]:
    """No values: what stands there without a detector is filled in."""
    return np.zeros(0)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Examples:
    """What became of every example of a cell; arrays of shape (n,).

    index: positions in the data set's split, each once. label, clean_prediction: classes. draws: predictions per question,
    1 for a deterministic model, K for a stochastic one. clean_correct: correct ones of the report draws on the clean image.
    select_correct, report_correct: correct ones of the draws that choose the worst case, and of the fresh draws that are
    reported, both on the adversarial image; equal for a deterministic model.
    Where a detector stands beside the model, a detected clean image is lost and a detected adversarial has failed:
    clean_correct counts draws that are right and accepted, select_correct and report_correct those right or rejected.
    clean_rejected, report_rejected: rejected report draws on the clean and on the adversarial image, zero by default.
    report_wrong: report draws with a wrong label, rejected or not; by default those that are not correct.
    fooled_rejected: report draws in which the model was wrong and the detector alone stood, the most over all candidates
    within the radius, not only for the one that was chosen; by default as many as that one must have had.
    clean_score, report_score: the detector's mean score over the report draws, above zero for rejected; NaN by default.
    visited: the distance, in the norm of the threat, of the best adversarial image that the attack asked about, whatever it
    returned; inf: none was adversarial, NaN: nobody watched, the default.
    distance_*: l0, l1, l2, linf of the perturbation in pixel units, rms: root of its mean square; NaN: not attacked, inf: a
    minimal-norm attack found nothing. image_l2: the clean image's l2 norm.

    Raises ValueError for shapes that differ, a wrong dtype, counts outside [0, draws], or an index that repeats.
    """

    index: NDArray[np.int64]
    label: NDArray[np.int64]
    clean_prediction: NDArray[np.int64]
    draws: int
    clean_correct: NDArray[np.int16]
    select_correct: NDArray[np.int16]
    report_correct: NDArray[np.int16]
    distance_l0: NDArray[np.float64]
    distance_l1: NDArray[np.float64]
    distance_l2: NDArray[np.float64]
    distance_linf: NDArray[np.float64]
    rms: NDArray[np.float64]
    image_l2: NDArray[np.float64]
    clean_rejected: NDArray[np.int16] = field(default_factory=_absent)
    report_rejected: NDArray[np.int16] = field(default_factory=_absent)
    report_wrong: NDArray[np.int16] = field(default_factory=_absent)
    fooled_rejected: NDArray[np.int16] = field(default_factory=_absent)
    clean_score: NDArray[np.float64] = field(default_factory=_absent)
    report_score: NDArray[np.float64] = field(default_factory=_absent)
    visited: NDArray[np.float64] = field(default_factory=_absent)

    def __post_init__(self) -> None:
        if int(self.draws) < 1:
            raise ValueError(f"Expected `draws` >= 1, got {self.draws}")
        object.__setattr__(self, "draws", int(self.draws))
        for name, value in self._unless_given().items():
            if np.size(getattr(self, name)) == 0:
                object.__setattr__(self, name, value)
        if np.size(self.fooled_rejected) == 0:
            object.__setattr__(self, "fooled_rejected", self._surely_fooled())
        for name, dtype in EXAMPLE_DTYPES.items():
            object.__setattr__(self, name, _array(name, getattr(self, name), dtype, ndim=1))
        _check_lengths({name: getattr(self, name) for name in EXAMPLE_DTYPES})
        for name in _COUNTED:
            if len(self) and not 0 <= getattr(self, name).min() <= getattr(self, name).max() <= self.draws:
                raise ValueError(f"Expected `{name}` in [0, {self.draws}], got values outside")
        if len(np.unique(self.index)) != len(self.index):
            raise ValueError("Expected `index` to name every example once, got repeats")
        for name in (*DISTANCES, "visited"):
            if (getattr(self, name) < 0).any():
                raise ValueError(f"Expected `{name}` >= 0, NaN or inf, got a negative value")
        for name, values in ((name, getattr(self, name)) for name in EXAMPLE_DTYPES if EXAMPLE_DTYPES[name] is np.float64):
            if (np.isfinite(values) & (np.abs(values) > parts.HUGE)).any():
                raise ValueError(f"Expected `{name}` within {parts.HUGE:g}, NaN or inf, got a larger value")

    def _unless_given(self) -> dict[str, NDArray[Any]]:
        """What the arrays of a detector and of a watch hold where there was none."""
        none, unknown = np.zeros(len(self), np.int16), np.full(len(self), np.nan)
        wrong = (self.draws - np.asarray(self.report_correct)).astype(np.int16)
        scores = {"clean_score": unknown, "report_score": unknown, "visited": unknown}
        return {"clean_rejected": none, "report_rejected": none, "report_wrong": wrong, **scores}

    def _surely_fooled(self) -> NDArray[Any]:
        """In how many draws the chosen image must have been both wrong and rejected."""
        wrong, rejected = np.asarray(self.report_wrong), np.asarray(self.report_rejected)
        if wrong.shape != rejected.shape:
            return np.zeros(len(self), np.int16)  # they are refused below
        found: NDArray[Any] = np.clip(wrong + rejected - self.draws, 0, None).astype(np.int16)
        return found

    def share(self, known: dict[bytes, NDArray[Any]]) -> None:
        """Hold every array that equals a known one as that one, and add the others to the known; values stay as they are."""
        for name, dtype in EXAMPLE_DTYPES.items():
            array = getattr(self, name)
            digest = hashlib.blake2b(array, digest_size=16, person=dtype.__name__.encode()).digest()
            object.__setattr__(self, name, known.setdefault(digest, array))

    @property
    def detected(self) -> bool:
        """Whether a detector stood beside the model."""
        return bool(np.isfinite(self.clean_score).any())

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Gallery:
    """A few images of a cell, for reports.

    clean, adversarial: shape (m, c, h, w), float32, m <= 10. index, label, prediction (of the adversarial): shape (m,).
    """

    clean: NDArray[np.float32]
    adversarial: NDArray[np.float32]
    index: NDArray[np.int64]
    label: NDArray[np.int64]
    prediction: NDArray[np.int64]

    def __post_init__(self) -> None:
        for name, dtype in GALLERY_DTYPES.items():
            ndim = 4 if dtype is np.float32 else 1
            object.__setattr__(self, name, _array(name, getattr(self, name), dtype, ndim=ndim))
        _check_lengths({name: getattr(self, name) for name in GALLERY_DTYPES})
        if self.clean.shape != self.adversarial.shape or len(self.clean) > GALLERY_SIZE:
            raise ValueError(
                f"Expected `clean` and `adversarial` of one shape with at most {GALLERY_SIZE} images, "
                f"got {self.clean.shape} and {self.adversarial.shape}"
            )
        if 0 in self.clean.shape[1:] or not (np.isfinite(self.clean).all() and np.isfinite(self.adversarial).all()):
            raise ValueError(
                f"Expected `clean` and `adversarial` with finite pixels, got {self.clean.shape} or other values"
            )


EXAMPLE_DTYPES: dict[str, type[np.generic]] = {
    **dict.fromkeys(("index", "label", "clean_prediction"), np.int64),
    **dict.fromkeys(_COUNTED, np.int16),
    **dict.fromkeys((*DISTANCES, "image_l2", "clean_score", "report_score", "visited"), np.float64),
}
GALLERY_DTYPES: dict[str, type[np.generic]] = {
    **dict.fromkeys(("clean", "adversarial"), np.float32),
    **dict.fromkeys(("index", "label", "prediction"), np.int64),
}


def _plain(name: str, value: object, depth: int = 0) -> Any:
    """A copy of `value` in JSON's types, with tuples as lists and texts as `seen`."""
    if isinstance(value, str):
        return seen(value)
    if value is None or isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if depth > parts.DEEPEST:
        raise ValueError(f"Expected a record with values at most {parts.DEEPEST} deep, got deeper ones at {name:.80}")
    if isinstance(value, list | tuple):
        return [_plain(f"{name}[{i}]", item, depth + 1) for i, item in enumerate(value)]
    if isinstance(value, dict):
        for member in value:
            parts.check_type(f"{name} member", member, (str,))
        return {seen(member): _plain(f"{name}.{member}", item, depth + 1) for member, item in value.items()}
    raise ValueError(f"Expected `{name:.80}` of a record to be a value that JSON knows, got {value!r:.80}")


def _array(name: str, value: object, dtype: type[np.generic], *, ndim: int) -> NDArray[Any]:
    array = np.asarray(value)
    if array.ndim != ndim or not np.can_cast(array.dtype, dtype, casting="same_kind"):
        wanted = f"{np.dtype(dtype).name} with {ndim} axes"
        raise ValueError(f"Expected `{name}` to be {wanted}, got {array.dtype.name} of shape {array.shape}")
    if np.issubdtype(dtype, np.integer) and array.size:
        limits = np.iinfo(dtype)  # type: ignore[type-var]
        if array.max() > limits.max or array.min() < limits.min:
            raise ValueError(f"Expected `{name}` to fit {np.dtype(dtype).name}, got values outside")
    return np.ascontiguousarray(array, dtype=dtype)


def _check_lengths(arrays: Mapping[str, NDArray[Any]]) -> None:
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        shown = ", ".join(f"{name} {length}" for name, length in lengths.items())
        raise ValueError(f"Expected arrays of one length, got {shown}")
