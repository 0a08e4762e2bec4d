"""Srinivasan et al. 2018 (arXiv:1805.12017): Langevin dynamics with a supervised denoiser before the classifier."""

from __future__ import annotations

from advbench.reproduction.papers.malade2018 import (
    blackbox,
    clusters,
    relaxation,
    schedules,
    shared,
    sweeps,
    timing,
    whitebox,
)
from advbench.reproduction.study import Study

STUDIES: tuple[Study, ...] = tuple(
    sorted(
        (
            *blackbox.STUDIES,
            *whitebox.STUDIES,
            *sweeps.STUDIES,
            *timing.STUDIES,
            *relaxation.STUDIES,
            *schedules.STUDIES,
            *shared.STUDIES,
            *clusters.STUDIES,
        ),
        key=lambda study: (not study.name.startswith("malade2018.table"), study.name),
    )
)
"""The tables in their order, and then what the paper shows or leaves out beside them."""
