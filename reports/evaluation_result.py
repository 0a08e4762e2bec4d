"""What an evaluation of one model says: clean and robust accuracy, every attack, every example. Never imports torch."""

from __future__ import annotations

import html
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from advbench.results.boards import trained_model
from advbench.results.cells import Cell
from advbench.results.flags import Flag, flags
from advbench.results.known_noise import known_noise
from advbench.results.record import Examples, Record
from advbench.results.resubmissions import rules_of
from advbench.results.statistics import Estimate, Outcome, cell_statistics, distance, rate, robust, worst_case
from advbench.results.unit_tests import PASSED, unit_test_of

if TYPE_CHECKING:
    import pandas as pd

SCHEMA_VERSION = 1
_Plain = TypeVar("_Plain")


@dataclass(frozen=True, slots=True, eq=False)
class EvaluationResult:
    """One model, attacked.

    label: of the model. cells: the record of every attack, with its examples if it was scored. missing: labels of cells
    that have no record, after an interruption. seconds: of the whole evaluation. reports: files that were written. notes:
    what to know of the model and how it was taken, a line each.

    Without a scored attack there is no number:

    >>> empty = EvaluationResult(label="model", cells=(), missing=("pgd",))
    >>> empty.robust is None, empty.complete, empty.exit_code
    (True, False, 1)
    """

    label: str
    cells: tuple[tuple[Record, Examples | None], ...]
    missing: tuple[str, ...] = ()
    seconds: float = 0.0
    reports: tuple[Path, ...] = ()
    interrupted: bool = False
    notes: tuple[str, ...] = ()

    @property
    def outcomes(self) -> list[Outcome]:
        """The cells that were scored."""
        return [(record, examples) for record, examples in self.cells if examples is not None]

    @property
    def complete(self) -> bool:
        """Whether every attack was scored; if not, `robust` is an upper bound."""
        return not self.missing and len(self.outcomes) == len(self.cells)

    @property
    def exit_code(self) -> int:
        """0 all attacks scored, 1 at least one failed, 130 interrupted."""
        return 130 if self.interrupted else 0 if self.complete else 1

    @property
    def clean(self) -> Estimate | None:
        """Accuracy on the clean images, with its 95% interval; None if no attack was scored."""
        return rate(self._clean()) if self.outcomes else None

    @property
    def robust(self) -> Estimate | None:
        """Accuracy under the worst of all attacks, per example, with its 95% interval; None if none was scored."""
        return rate(self._robust()) if self.outcomes else None

    @property
    def resubmitted(self) -> dict[int, tuple[Estimate, Estimate]]:
        """Clean and robust accuracy of a random model that is right only if all of N submissions are, by N.

        N = 1 is the mean over fresh draws, `clean` and `robust`. Empty for a model that is not random.
        """
        if not (self.outcomes and self._stochastic()):
            return {}
        model = trained_model(self.outcomes[0][0].seed, [Cell(*outcome) for outcome in self.outcomes], self._epsilon())
        return {n: (rate(model.clean_values(n)), rate(model.worst_case(submissions=n))) for n in rules_of([model.draws])}

    @property
    def known_noise(self) -> Estimate | None:
        """Accuracy of a random model under an attacker who knows the draws, with its interval; None if none attacked it.

        A diagnostic: the mean over the draws, each attacked as a model of its own, of images that are right without an
        attack too.
        """
        found = known_noise(record for record, _ in self.outcomes)
        return None if found is None else rate(found)

    @property
    def flags(self) -> list[dict[str, str | int]]:
        """Signs that the evaluation is incomplete, as `advbench.results.flags` finds them."""
        return [asdict(flag) for flag in self._flags()]

    @property
    def frame(self) -> pd.DataFrame:
        """A pandas DataFrame with a row per attack, failed ones among them, and the worst case over all."""
        import pandas as pd

        return pd.DataFrame(self.rows())

    def rows(self) -> list[dict[str, Any]]:
        """What `frame` holds: shares in [0, 1] with the ends of their intervals; None if there is no number."""
        rows = [self._row(record, examples) for record, examples in self.cells]
        rows += [{**dict.fromkeys(_ROW), "attack": label, "status": "missing"} for label in self.missing]
        worst = self.robust
        if worst is not None:
            label = "worst case" + ("" if self.complete else ", incomplete") + (", an upper bound" if self.flags else "")
            rows.append({**dict.fromkeys(_ROW), "attack": label, "status": "ok", **_estimate("robust", worst)})
        return rows

    def summary(self) -> dict[str, Any]:
        """All of it as plain JSON values; per-example outcomes in data-set order."""
        first = self.cells[0][0] if self.cells else None
        return {
            "schema_version": SCHEMA_VERSION,
            "target": {"label": self.label, "weights_sha256": self._weights(), "stochastic": self._stochastic()},
            "dataset": first.dataset if first else None,
            "threat": first.threat if first else None,
            "seed": first.seed if first else None,
            "clean": _as_json(self.clean),
            "robust": {**_as_json(self.robust), "complete": self.complete, "upper_bound": self._is_bound()}
            if self.robust
            else None,
            "resubmitted": [
                {"submissions": n, "clean": _as_json(clean), "robust": _as_json(robust)}
                for n, (clean, robust) in self.resubmitted.items()
            ],
            "known_noise": _as_json(self.known_noise),
            "attacks": [self._attack(record, examples) for record, examples in self.cells],
            "missing": list(self.missing),
            "examples": self._examples() if self.outcomes else None,
            "flags": self.flags,
            "notes": list(self.notes),
            "seconds": round(self.seconds, 3),
            "versions": first.measured.get("environment", {}) if first else {},
            "device": first.measured.get("device") if first else None,
        }

    def to_json(self) -> str:
        """The summary as JSON text."""
        return json.dumps(self.summary(), indent=1, allow_nan=False)

    def __str__(self) -> str:
        from tabulate import tabulate

        lines = [self._title(), ""]
        if self.clean is not None:
            lines[1:1] = [f"clean accuracy {_share(self.clean)}"]
        tested = {record.attack["label"]: test for record, _ in self.cells if (test := unit_test_of(record)) is not None}
        names = ["attack", "robust accuracy", *(["unit test"] if tested else []), *_COSTS]
        rows = [_texts(row, unit_test=bool(tested)) for row in self.rows()]
        lines += [tabulate(rows, names, tablefmt="simple", disable_numparse=True)]
        lines += [f"unit test of {label}, left out: {test.why_not}" for label, test in tested.items() if test.why_not]
        lines += [
            f"worst of {n} submissions: clean accuracy {_share(clean)}, robust accuracy {_share(robust)}"
            for n, (clean, robust) in self.resubmitted.items()
            if n > 1
        ]
        known = self.known_noise
        lines += [f"under an attacker who knows the draws: robust accuracy {_share(known)}"] if known is not None else []
        lines += [f"known noise of {label}, left out: {reason}" for label, reason in self._unknown()]
        lines += [
            f"failed: {record.attack['label']}: {record.reason}" for record, examples in self.cells if examples is None
        ]
        lines += [f"flag: {flag.finding} ({flag.measured}); next: {flag.remedy}" for flag in self._flags()]
        lines += [f"note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        head = f"<p><b>{html.escape(self._title())}</b>"
        if self.clean is not None:
            head += f"<br>clean accuracy {_share(self.clean)}"
        flagged = "".join(f"<li>{html.escape(flag.finding)}: {html.escape(flag.measured)}</li>" for flag in self._flags())
        flagged += "".join(f"<li>{html.escape(note)}</li>" for note in self.notes)
        return head + "</p>" + str(self.frame.to_html(index=False, na_rep="")) + (f"<ul>{flagged}</ul>" if flagged else "")

    def _title(self) -> str:
        if not self.cells:
            return self.label
        record = self.cells[0][0]
        threat, n = record.threat, record.dataset["n"]
        epsilon = "" if threat["epsilon"] is None else f" {threat['epsilon']:.4g}"
        bound = f"{threat['norm']}{epsilon}" if threat["norm"] != "none" else "corruptions"
        return f"{self.label} on {n} {'image' if n == 1 else 'images'} of {record.dataset['name']}, {bound}"

    def _row(self, record: Record, examples: Examples | None) -> dict[str, Any]:
        row = {**dict.fromkeys(_ROW), "attack": record.attack["label"], "status": record.status}
        tested = unit_test_of(record)
        row["unit_test"] = tested.share if tested is not None else None
        if examples is None:
            return row
        statistics = cell_statistics(record, examples)
        row |= {name: getattr(statistics, name) for name in ("seconds", "forwards", "backwards", "queries")}
        if statistics.distortion is not None:
            row |= _estimate("median_distance", statistics.distortion.median)
        return row | (_estimate("robust", statistics.robust_accuracy) if statistics.robust_accuracy else {})

    def _attack(self, record: Record, examples: Examples | None) -> dict[str, Any]:
        attack = record.attack
        facts: dict[str, Any] = {name: attack[name] for name in ("label", "name", "arguments", "minimal_norm")}
        facts |= {"status": record.status, "reason": record.reason}
        row = {
            name: _plain(value) for name, value in self._row(record, examples).items() if name not in ("attack", "status")
        }
        success = cell_statistics(record, examples).success_clean_correct if examples is not None else None
        tested = unit_test_of(record)
        row["unit_test"] = None if tested is None else tested.described()
        return facts | row | {"success_clean_correct": _as_json(success)}

    def _examples(self) -> dict[str, Any]:
        """Per-example outcomes, in the order of the data set."""
        _, first = self.outcomes[0]
        order = np.argsort(first.index)
        columns: dict[str, NDArray[np.generic]] = {
            "index": first.index,
            "label": first.label,
            "clean_prediction": first.clean_prediction,
            "clean": self._clean(),
            "robust": self._robust(),
        }
        outcomes: dict[str, Any] = {
            name: [_plain(value) for value in values[order].tolist()] for name, values in columns.items()
        }
        outcomes["by_attack"] = {
            record.attack["label"]: [_plain(value) for value in robust(record, examples)[order].tolist()]
            for record, examples in self.outcomes
        }
        nearest = [distance(record, examples)[order] for record, examples in self.outcomes if record.attack["minimal_norm"]]
        if nearest:
            outcomes["distance"] = [_plain(value) for value in np.fmin.reduce(nearest).tolist()]
        return outcomes

    def _unknown(self) -> list[tuple[str, str]]:
        """Attacks that should have known the draws and failed, with the reasons."""
        told = [(record.attack["label"], record.details.get("known_noise")) for record, _ in self.outcomes]
        return [(label, part["reason"]) for label, part in told if part is not None and part["reason"]]

    def _flags(self) -> tuple[Flag, ...]:
        return flags(self.outcomes, self._epsilon()) if self.outcomes else ()

    def _clean(self) -> NDArray[np.float64]:
        _, examples = self.outcomes[0]
        return np.asarray(examples.clean_correct / examples.draws, dtype=np.float64)

    def _robust(self) -> NDArray[np.float64]:
        return worst_case(self.outcomes, self._epsilon()).values

    def _epsilon(self) -> float | None:
        epsilon: float | None = self.outcomes[0][0].threat["epsilon"]
        return epsilon

    def _is_bound(self) -> bool:
        return bool(self.flags) or not self.complete

    def _weights(self) -> str:
        return next((record.weights_sha256 for record, _ in self.outcomes), "")

    def _stochastic(self) -> bool:
        return any(bool(record.target["stochastic"]) for record, _ in self.cells)


_ROW = (
    *("attack", "status", "robust", "robust_low", "robust_high"),
    *("median_distance", "median_distance_low", "median_distance_high", "seconds", "forwards", "backwards", "queries"),
    "unit_test",
)
_COSTS = ("median distance", "forwards", "backwards", "time per image")


def _estimate(name: str, estimate: Estimate) -> dict[str, float]:
    return {name: estimate.value, f"{name}_low": estimate.low, f"{name}_high": estimate.high}


def _as_json(estimate: Estimate | None) -> dict[str, float | None]:
    if estimate is None:
        return {}
    return {name: _plain(getattr(estimate, name)) for name in ("value", "low", "high")}


def _plain(value: _Plain) -> _Plain | None:
    """A value for JSON; None for NaN and infinity, which JSON does not know."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _share(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.1f}% [{100 * estimate.low:.1f}, {100 * estimate.high:.1f}]"


def _texts(row: Mapping[str, Any], *, unit_test: bool) -> tuple[str, ...]:
    """A row as a terminal shows it. unit_test: whether with the share of planted images that were found."""
    if row["status"] != "ok":
        return (row["attack"], row["status"], *[""] * (len(_COSTS) + unit_test))
    robust_accuracy = Estimate(row["robust"], row["robust_low"], row["robust_high"]) if row["robust"] is not None else None
    distances = [row[f"median_distance{end}"] for end in ("", "_low", "_high")]
    return (
        row["attack"],
        _share(robust_accuracy) if robust_accuracy else "",
        *([_tested(row["unit_test"])] if unit_test else []),
        "" if distances[0] is None else f"{distances[0]:.4g} [{distances[1]:.4g}, {distances[2]:.4g}]",
        *("" if row[name] is None else f"{row[name]:.4g}" for name in ("forwards", "backwards")),
        "" if row["seconds"] is None else f"{row['seconds']:.3g} s",
    )


def _tested(share: float | None) -> str:
    """The share of planted images that an attack found, and whether that is too little."""
    if share is None:
        return ""
    return f"{100 * share:.1f}%" + ("" if share >= PASSED else ", failed")
