"""Mosca & Magoulas 2018 (doi:10.1007/s00500-017-2998-4): the smooth gradient method under FGSM."""

from __future__ import annotations

from advbench.reproduction import mosca2018_rates, mosca2018_tables, mosca2018_updates

STUDIES = (*mosca2018_tables.STUDIES, *mosca2018_updates.STUDIES, *mosca2018_rates.STUDIES)
