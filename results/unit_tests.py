"""Attack unit tests as records hold them: what attacks found of adversarial images that are known to exist.

Zimmermann et al. 2022, "Increasing confidence in adversarial robustness evaluations" (arXiv:2206.13991).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from advbench.results.record import Record, UnitTestPart

PASSED = 0.95
"""The least share of planted adversarial images that an evaluation must find."""


@dataclass(frozen=True, slots=True)
class UnitTestOutcome:
    """The unit test of a cell, or of several on the same images.

    images: tried. built: for how many a model with a planted adversarial image could be made. missed: data-set indices of
    those on which nothing was found. control: how many fell to random points, `points` for each. probes: how many each
    candidate alone found, None for one without a gradient. features: what the readouts read. unbuilt: the images without a
    model, by reason. reason: why there is no outcome at all; empty where there is one.
    """

    images: int
    built: int
    missed: tuple[int, ...]
    control: int
    points: int
    probes: Mapping[str, int | None]
    features: str
    unbuilt: Mapping[str, int]
    reason: str = ""

    @property
    def found(self) -> int:
        """How many planted images were found."""
        return self.built - len(self.missed)

    @property
    def share(self) -> float | None:
        """The share found; None where nothing could be tested."""
        return self.found / self.built if self.built else None

    @property
    def failed(self) -> bool:
        """Whether less than `PASSED` was found."""
        return self.share is not None and self.share < PASSED

    @property
    def why_not(self) -> str:
        """Why nothing could be tested, or not all images; empty where all were."""
        return self.reason or "; ".join(f"{name} ({count})" for name, count in self.unbuilt.items())

    def described(self) -> UnitTestPart:
        """As a record's details and the JSON of an evaluation hold it."""
        return {
            "images": self.images,
            "built": self.built,
            "found": self.found,
            "missed": list(self.missed),
            "control": self.control,
            "points": self.points,
            "probes": dict(self.probes),
            "features": self.features,
            "unbuilt": dict(self.unbuilt),
            "reason": self.reason,
        }


def unit_test_of(record: Record) -> UnitTestOutcome | None:
    """The unit test of a cell; None if it had none."""
    found = record.details.get("unit_test")
    if not found:
        return None
    return UnitTestOutcome(
        images=found["images"],
        built=found["built"],
        missed=tuple(found["missed"]),
        control=found["control"],
        points=found["points"],
        probes=found["probes"],
        features=found["features"],
        unbuilt=found["unbuilt"],
        reason=found["reason"],
    )


def together(records: Iterable[Record]) -> tuple[int, int]:
    """How many planted images the attacks of all cells found together, and of how many, summed over seeds and radii.

    All cells of a target, a seed and a threat have the same planted images; one is missed where every attack misses it.
    """
    groups: dict[tuple[str, int, str], list[UnitTestOutcome]] = {}
    for record in records:
        found = unit_test_of(record)
        if found is not None and found.built:
            place = record.target["label"], record.seed, f"{record.threat['norm']} {record.threat['epsilon']}"
            groups.setdefault(place, []).append(found)
    built = [max(each.built for each in group) for group in groups.values()]
    return sum(built) - sum(map(_missed, groups.values())), sum(built)


def _missed(outcomes: Sequence[UnitTestOutcome]) -> int:
    """How many images all of them miss."""
    return len(set.intersection(*(set(each.missed) for each in outcomes)))
