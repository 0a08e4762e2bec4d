"""The types and ranges of what a record holds, as checks that name the member which is wrong."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeAlias

from advbench.reading import unseen
from advbench.results.matrices import MATRICES

Check: TypeAlias = Callable[[str, object], None]
"""Raises ValueError, with the name that it is given, for a value that cannot be."""

STATUSES = ("ok", "skipped", "error")
NORMS = ("linf", "l2", "l1", "l0", "none")
SPLITS_HOLD = 10**8
"""More images than any data set that is scored has."""
HUGE = 1e100
"""More than any number of an evaluation, and still a number when it is squared."""
DEEPEST = 64
"""The levels of lists and objects within a record; ours have six."""
_LARGEST = 2**63 - 1


def check_key(key: object) -> str:
    """The key itself where it is 64 lower-case hex digits. Raises ValueError otherwise."""
    if not isinstance(key, str) or len(key) != 64 or not set(key) <= set("0123456789abcdef"):
        raise ValueError(f"Expected a key of 64 hex digits, got {key!r:.80}")
    return key


def check_texts(value: object, depth: int = 0) -> None:
    """Raise ValueError if a text in `value`, which came out of a parser, is `unseen`, or if it is too deep."""
    if depth > DEEPEST + 1:
        raise ValueError(f"Expected values at most {DEEPEST} deep, got deeper ones")
    if isinstance(value, str) and unseen(value):
        raise ValueError(f"Expected texts without control characters and lone surrogates, got {value!a:.80}")
    if isinstance(value, dict):
        for member, item in value.items():
            check_texts(member)
            check_texts(item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_texts(item, depth + 1)


def check_type(name: str, value: object, types: tuple[type, ...]) -> None:
    """Raise ValueError if `value` has none of the `types`; a bool is no number."""
    unwanted_bool = isinstance(value, bool) and bool not in types
    if unwanted_bool or not isinstance(value, types):
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in types)
        raise ValueError(f"Expected `{name}` of a record to be {wanted}, got {value!r:.80}")


def typed(*types: type) -> Check:
    """A value of one of these types."""
    return lambda name, value: check_type(name, value, types)


def whole(lowest: int = 0, highest: int = _LARGEST, *, missing: bool = False) -> Check:
    """A whole number in [lowest, highest]; None too if `missing`."""

    def check(name: str, value: object) -> None:
        check_type(name, value, (int, type(None)) if missing else (int,))
        if value is not None and not (isinstance(value, int) and lowest <= value <= highest):
            raise ValueError(f"Expected `{name}` of a record in [{lowest}, {highest}], got {value!r:.40}")

    return check


def real(lowest: float = 0.0, *, above: bool = False, missing: bool = False) -> Check:
    """A number of at least `lowest`, larger if `above`, and no larger than `HUGE`; None too if `missing`."""

    def check(name: str, value: object) -> None:
        check_type(name, value, (int, float, type(None)) if missing else (int, float))
        if value is None or not isinstance(value, int | float):
            return
        if not (lowest < value if above else lowest <= value) or not -HUGE <= value <= HUGE:
            bound = f" {'>' if above else '>='} {lowest:g} and" if math.isfinite(lowest) else ""
            raise ValueError(f"Expected `{name}` of a record{bound} within {HUGE:g}, got {value!r:.40}")

    return check


def one_of(*choices: str) -> Check:
    """A text among `choices`."""

    def check(name: str, value: object) -> None:
        check_type(name, value, (str,))
        if value not in choices:
            raise ValueError(f"Expected `{name}` of a record to be one of {', '.join(choices)}, got {value!r:.80}")

    return check


def key(name: str, value: object) -> None:
    """The key of a task, which becomes the name of a file."""
    try:
        check_key(value)
    except ValueError as error:
        raise ValueError(f"`{name}` of a record: {error}") from None


def _record_key(_: str, value: object) -> None:
    check_key(value)


def each(check: Check) -> Check:
    """A list of such values."""

    def check_all(name: str, value: object) -> None:
        check_type(name, value, (list,))
        for place, item in enumerate(value if isinstance(value, list) else ()):
            check(f"{name}[{place}]", item)

    return check_all


def by_name(check: Check) -> Check:
    """An object whose members are such values."""

    def check_all(name: str, value: object) -> None:
        check_type(name, value, (dict,))
        for member, item in (value if isinstance(value, dict) else {}).items():
            check(f"{name}.{member:.40}", item)

    return check_all


def part(required: Mapping[str, Check], optional: Mapping[str, Check] | None = None) -> Check:
    """An object that has the `required` members, and may have the `optional` ones; of others nothing is asked."""

    def check(name: str, value: object) -> None:
        check_type(name, value, (dict,))
        members = value if isinstance(value, dict) else {}
        for member, of_member in required.items():
            if member not in members:
                shown = ", ".join(members) or "nothing"
                raise ValueError(f"Expected `{name}` of a record to have `{member}`, got {shown:.200}")
            of_member(f"{name}.{member}", members[member])
        for member, of_member in (optional or {}).items():
            if member in members:
                of_member(f"{name}.{member}", members[member])

    return check


def _box(name: str, value: object) -> None:
    check_type(name, value, (list, type(None)))
    if isinstance(value, list):
        each(real(-math.inf))(name, value)
        if len(value) != 2 or not value[0] < value[1]:
            raise ValueError(f"Expected `{name}` of a record to be [low, high] with low < high, got {value!r:.80}")


def _diagnosis(name: str, value: object) -> None:
    by_name(real())(name, value)
    if value and isinstance(value, dict) and "images" not in value:
        raise ValueError(f"Expected `{name}` of a record to have `images`, got {', '.join(value):.200}")


_TEXT, _FLAG, _OBJECT = typed(str), typed(bool), typed(dict)
_SHARE = real(missing=True)
_COMPONENT = part({"name": _TEXT, "arguments": _OBJECT})
_DRAWS = part({}, {"draws": whole(1), "capped": _FLAG, "cosines": each(real(-math.inf, missing=True))})
_UNIT_TEST = part(
    {
        **dict.fromkeys(("images", "built", "control", "points"), whole(0, SPLITS_HOLD)),
        "missed": each(whole()),
        "probes": by_name(real(missing=True)),
        "features": _TEXT,
        "unbuilt": by_name(whole(0, SPLITS_HOLD)),
        "reason": _TEXT,
    }
)

DATASET = part({"name": _TEXT, "split": _TEXT, "fingerprint": _TEXT, "n": whole(0, SPLITS_HOLD)})
TARGET = part({"label": _TEXT, "defense": _COMPONENT, "architecture": _COMPONENT, "stochastic": _FLAG})
SOURCE = part(
    {"label": _TEXT, "kind": _TEXT},
    {"defense": _COMPONENT, "architecture": part({"name": _TEXT}, {"arguments": _OBJECT}), "stochastic": _FLAG},
)
ATTACK = part(
    {"label": _TEXT, "name": _TEXT, "arguments": _OBJECT, "minimal_norm": _FLAG, "source_hash": _TEXT},
    {"gradients": _FLAG, "family": _TEXT, "parts": by_name(_TEXT), "identity": _TEXT, "budget": whole(1)},
)
THREAT = part({"norm": one_of(*NORMS), "epsilon": real(above=True, missing=True), "box": _box})
_COUNTS = dict.fromkeys(("examples", "forwards", "backwards", "queries"), whole())
COUNTS, ANY_COUNTS = part(_COUNTS), part({}, _COUNTS)
DETAILS = part(
    {},
    {
        "compute_batch": whole(1),
        "model_key": key,
        "crafts": each(key),
        "train": _OBJECT,
        "train_seconds": real(),
        "train_facts": by_name(real(-math.inf, missing=True)),
        "precision": by_name(_TEXT),
        "calibration": each(_OBJECT),
        "preparation": by_name(_DRAWS),
        "draws": by_name(whole(1)),
        "candidates": by_name(_SHARE),
        "diagnosis": _diagnosis,
        "unit_test": _UNIT_TEST,
        "known_noise": part({"draws": whole(1), "correct": each(whole()), "reason": _TEXT}),
        "substitute": part({}, {"queries": whole(), "fidelity": _SHARE, "sizes": each(whole()), "seconds": real()}),
    },
)
MEASURED = part(
    {},
    {
        "seconds": real(missing=True),
        "peak_memory_bytes": whole(missing=True),
        "device": _TEXT,
        "threads": whole(missing=True),
        "tasks_beside": whole(missing=True),
        "environment": by_name(typed(str, int, float, bool, type(None))),
        "watch_seconds": real(),
    },
)
FIELDS: Mapping[str, Check] = {
    "key": _record_key,
    **dict.fromkeys(("reason", "weights_sha256"), _TEXT),
    "status": one_of(*STATUSES),
    "matrix": one_of(*MATRICES),
    "seed": whole(),
    "dataset": DATASET,
    "target": TARGET,
    "attack": ATTACK,
    "threat": THREAT,
    "details": DETAILS,
    "measured": MEASURED,
}
"""The checks of a record's fields but `source` and `counts`, which depend on matrix and status."""

_ANSWERS = part(
    dict.fromkeys(("matrix", "attack", "source", "report"), _TEXT),
    {"select": _TEXT, "seconds": real(missing=True), "queries": whole(missing=True)},
)
_MODEL = part(
    {
        "seed": whole(),
        **dict.fromkeys(("weights", "device", "clean"), _TEXT),
        "draws": whole(1, 10**6),
        "answers": each(_ANSWERS),
    }
)
BOARDS = each(
    part(
        {
            "dataset": DATASET,
            "examples": _TEXT,
            "threat": THREAT,
            "attacks": by_name(part({"name": _TEXT, "arguments": _OBJECT, "source_hash": _TEXT})),
            "targets": each(
                part(
                    {
                        "label": _TEXT,
                        **dict.fromkeys(("defense", "architecture"), _COMPONENT),
                        "stochastic": _FLAG,
                        "flags": each(_TEXT),
                        "models": each(_MODEL),
                    }
                )
            ),
        }
    )
)
"""The boards of a baseline."""
