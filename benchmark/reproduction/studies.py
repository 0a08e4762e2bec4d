"""All studies, and how they are named."""

from __future__ import annotations

import difflib

from advbench.reproduction import gu2014, malade2018, mosca2018, sgr2018, shaham2015
from advbench.reproduction.study import Scale, Study
from advbench.results.papers import PAPERS

STUDIES: tuple[Study, ...] = (
    *gu2014.STUDIES,
    *shaham2015.STUDIES,
    *mosca2018.STUDIES,
    *malade2018.STUDIES,
    *sgr2018.STUDIES,
)
"""Every table and figure that can be reproduced, by paper."""


def choose(name: str | None, scale: Scale) -> tuple[Study, ...]:
    """The studies of a scale that `name`, PAPER or PAPER.TABLE, means; all where None. Raises ValueError for none."""
    found = [study for study in STUDIES if name in (None, study.paper, study.name)]
    if not found:
        papers = [paper for paper in PAPERS if any(study.paper == paper for study in STUDIES)]
        known = [*papers, *(study.name for study in STUDIES)]
        close = difflib.get_close_matches(name or "", known, n=1)
        hint = f": did you mean {close[0]}?" if close else ""
        raise ValueError(f"Expected a paper or a table among {', '.join(known)}, got {name!r}{hint}")
    fitting = tuple(study for study in found if scale in study.scales)
    if not fitting:
        raise ValueError(f"{name} is only for --scale {' or '.join(dict.fromkeys(s for one in found for s in one.scales))}")
    return fitting
