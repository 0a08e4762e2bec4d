"""Roth et al. 2018 (arXiv:1805.08736): structured gradient regularisation, transfer, and long-range correlated noise."""

from __future__ import annotations

from advbench.reproduction.papers.sgr2018 import covariance, frontier, matrices, noise, whitebox

STUDIES = (
    *frontier.STUDIES,
    *matrices.STUDIES,
    *whitebox.STUDIES,
    *noise.STUDIES,
    *covariance.STUDIES,
)
