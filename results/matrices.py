"""The matrices by name; imports nothing, so that the command line can name them."""

from __future__ import annotations

from typing import Final, Literal, get_args

RankedMatrix = Literal["white-box", "black-box", "transfer"]
RANKED: Final[tuple[RankedMatrix, ...]] = get_args(RankedMatrix)
"""The matrices that a run can be asked for and that rank, in the order in which reports show them."""
OBLIVIOUS: Final = "oblivious"
MATRICES: Final[tuple[str, ...]] = (*RANKED, OBLIVIOUS)
"""The matrices that a record can belong to."""
