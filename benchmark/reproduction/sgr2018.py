"""Roth et al. 2018 (arXiv:1805.08736): structured gradient regularisation, transfer, and long-range correlated noise."""

from __future__ import annotations

from advbench.reproduction import sgr2018_covariance, sgr2018_matrices, sgr2018_noise, sgr2018_whitebox

STUDIES = (
    *sgr2018_matrices.STUDIES,
    *sgr2018_whitebox.STUDIES,
    *sgr2018_noise.STUDIES,
    *sgr2018_covariance.STUDIES,
)
