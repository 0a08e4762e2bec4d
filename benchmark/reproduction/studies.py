"""All studies, and how they are named."""

from __future__ import annotations

import difflib

from advbench.reproduction.papers.gu2014.studies import STUDIES as GU2014
from advbench.reproduction.papers.malade2018.studies import STUDIES as MALADE2018
from advbench.reproduction.papers.mosca2018.studies import STUDIES as MOSCA2018
from advbench.reproduction.papers.sgr2018.studies import STUDIES as SGR2018
from advbench.reproduction.papers.shaham2015.studies import STUDIES as SHAHAM2015
from advbench.reproduction.study import Scale, Study
from advbench.results.papers import PAPERS

STUDIES: tuple[Study, ...] = (*GU2014, *SHAHAM2015, *MOSCA2018, *MALADE2018, *SGR2018)
"""Every table and figure that can be reproduced, by paper."""


def choose(name: str | None, scale: Scale) -> tuple[Study, ...]:
    """The studies of a scale that `name`, PAPER or PAPER.TABLE, means; all if None. Raises ValueError for none."""
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
