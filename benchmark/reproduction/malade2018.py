"""Srinivasan et al. 2018 (arXiv:1805.12017): Langevin dynamics with a supervised denoiser before the classifier."""

from __future__ import annotations

from advbench.reproduction import (
    malade2018_blackbox,
    malade2018_relaxation,
    malade2018_sweeps,
    malade2018_timing,
    malade2018_whitebox,
)
from advbench.reproduction.study import Study

STUDIES: tuple[Study, ...] = tuple(
    sorted(
        (
            *malade2018_blackbox.STUDIES,
            *malade2018_whitebox.STUDIES,
            *malade2018_sweeps.STUDIES,
            *malade2018_timing.STUDIES,
            *malade2018_relaxation.STUDIES,
        ),
        key=lambda study: (not study.name.startswith("malade2018.table"), study.name),
    )
)
"""The tables in their order, and then what the paper shows or leaves out beside them."""
