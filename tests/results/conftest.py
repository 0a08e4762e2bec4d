from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from advbench.results.record import DISTANCES, Examples, Record

KEY = "0123456789abcdef" * 4


def build_record(**changes: Any) -> Record:
    """A valid white-box record; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "key": KEY,
        "status": "ok",
        "matrix": "white-box",
        "dataset": {"name": "digits", "split": "test", "fingerprint": "f" * 64, "n": 4},
        "target": {
            "label": "none",
            "defense": {"name": "none", "arguments": {}},
            "architecture": {"name": "mlp", "arguments": {"widths": [8, 8]}},
            "stochastic": False,
        },
        "source": None,
        "attack": {"label": "pgd", "name": "pgd", "arguments": {"steps": 40}, "minimal_norm": False, "source_hash": "a"},
        "weights_sha256": "w" * 64,
        "threat": {"norm": "linf", "epsilon": 0.3, "box": [0.0, 1.0]},
        "seed": 0,
        "counts": {"examples": 4, "forwards": 8, "backwards": 4, "queries": 0},
        "details": {},
        "measured": {"seconds": 2.0, "device": "cpu"},
    }
    return Record(**(fields | changes))


def build_examples(n: int = 4, draws: int = 1, **changes: Any) -> Examples:
    """`n` clean-correct, unbroken examples at distance 0.1; `changes` replace the arrays."""
    fields: dict[str, Any] = {
        "index": np.arange(n),
        "label": np.zeros(n, np.int64),
        "clean_prediction": np.zeros(n, np.int64),
        "draws": draws,
        **dict.fromkeys(("clean_correct", "select_correct", "report_correct"), np.full(n, draws, np.int16)),
        **dict.fromkeys(DISTANCES, np.full(n, 0.1)),
        "image_l2": np.ones(n),
    }
    return Examples(**(fields | changes))


@pytest.fixture(scope="session")
def make_record() -> Callable[..., Record]:
    return build_record


@pytest.fixture(scope="session")
def make_examples() -> Callable[..., Examples]:
    return build_examples
