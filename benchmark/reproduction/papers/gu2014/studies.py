"""The studies of Gu & Rigazio 2014 (arXiv:1412.5068), in the order of the paper."""

from __future__ import annotations

from advbench.reproduction.papers.gu2014 import autoencoders, distances, noise, recipes, strengths, strongest

STUDIES = (
    distances.TABLE1,
    *noise.STUDIES,
    *autoencoders.STUDIES,
    distances.TABLE5,
    distances.TABLE6,
    *recipes.STUDIES,
    *strengths.STUDIES,
    *strongest.STUDIES,
)
