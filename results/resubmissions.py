"""Random models by other rules than the mean: what is left when an attacker submits the same image several times.

A model that answers anew each time is right on average, or every time. Accuracy by the mean over fresh draws asks for the
first; the worst of N resubmissions asks for the second, and counts an image as right only if N answers in a row are.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from advbench.results.statistics import Values

RULES = (1, 2, 5, 10)
"""The numbers of submissions that are shown; one is the mean over fresh draws."""


def arrangements(correct: ArrayLike, n: int) -> Values:
    """In how many ways n of `correct` draws can be taken one after the other, c (c - 1) ... (c - n + 1), of any shape."""
    steps = np.arange(n).reshape(-1, *[1] * np.ndim(correct))
    ways: Values = np.clip(np.asarray(correct, dtype=np.float64) - steps, 0, None).prod(axis=0)
    return ways


def outlasts(correct: ArrayLike, draws: int, n: int) -> Values:
    """The probability that n further answers are all right, from `correct` right ones of `draws`, of any shape.

    C(c, n) / C(K, n) is the only estimate that is unbiased whatever the share is (Hoeffding 1948); (c / K) ** n is too high.
    Raises ValueError unless 1 <= n <= draws.

    An image that is right in 9 of 10 draws falls to five submissions every second time:

    >>> outlasts(np.array([10, 9, 4]), draws=10, n=5)
    array([1. , 0.5, 0. ])
    """
    if not 1 <= n <= draws:
        raise ValueError(f"Expected 1 <= n <= {draws} draws, got {n}")
    chance: Values = arrangements(correct, n) / arrangements(draws, n)
    return chance


def rules_of(draws: Sequence[int]) -> tuple[int, ...]:
    """The rules of `RULES` that models with so many fresh draws each allow, at least one."""
    return tuple(n for n in RULES if n <= min(draws))
