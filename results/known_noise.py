"""What random models are worth against an attacker who knows the draws that they are scored under: a diagnostic."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from advbench.results.record import Record
from advbench.results.statistics import Values


def known_noise(records: Iterable[Record]) -> Values | None:
    """The share of known draws in which each image of one model withstood the strongest attack on it, (n,), in [0, 1].

    records: of cells of one model and the same images, in the order of the data set. None if none of them was attacked with
    known draws. ValueError for records of other numbers of images.

    The attacker knows the draws (arXiv:2404.14309), and attacks each of them as a model of its own.
    """
    told = [record.details["known_noise"] for record in records if "known_noise" in record.details]
    parts = [part for part in told if part["correct"]]
    if not parts:
        return None
    if len({len(part["correct"]) for part in parts}) > 1:
        raise ValueError("Expected records of the same images, got other numbers of them")
    shares = [np.asarray(part["correct"], dtype=np.float64) / part["draws"] for part in parts]
    least: Values = np.min(np.stack(shares), axis=0)
    return least
