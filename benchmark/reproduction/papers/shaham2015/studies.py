"""Shaham et al. 2015 (arXiv:1511.05432): robust optimisation, on a baseline's adversarials and on one's own."""

from __future__ import annotations

from advbench.reproduction.papers.shaham2015 import cost, epochs, fit, fixed_set, input_bn, sweep

STUDIES = (
    *fixed_set.STUDIES,
    *sweep.STUDIES,
    *epochs.STUDIES,
    *fit.STUDIES,
    *cost.STUDIES,
    *input_bn.STUDIES,
)
