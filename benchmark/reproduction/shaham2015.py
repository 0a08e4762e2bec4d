"""Shaham et al. 2015 (arXiv:1511.05432): robust optimisation, on a baseline's adversarials and on one's own."""

from __future__ import annotations

from advbench.reproduction import shaham2015_epochs, shaham2015_fixed_set, shaham2015_input_bn, shaham2015_sweep

STUDIES = (
    *shaham2015_fixed_set.STUDIES,
    *shaham2015_sweep.STUDIES,
    *shaham2015_epochs.STUDIES,
    *shaham2015_input_bn.STUDIES,
)
