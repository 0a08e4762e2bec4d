"""Mosca & Magoulas 2018 (doi:10.1007/s00500-017-2998-4): the smooth gradient method under FGSM."""

from __future__ import annotations

from advbench.reproduction.papers.mosca2018 import rates, tables, updates

STUDIES = (*tables.STUDIES, *updates.STUDIES, *rates.STUDIES)
