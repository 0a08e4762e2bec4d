"""CSV files whose texts no spreadsheet takes for formulas; numbers stay as they are."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd

_FORMULA = re.compile(r"\s*[=+\-@＝＋－＠]|[\t\n]")
"""The starts of a cell that a spreadsheet evaluates (OWASP, "CSV injection")."""


def inert(value: object) -> object:
    """`value`, with an apostrophe in front of a text that a spreadsheet would evaluate, and its line breaks as ``\\n``.

    >>> inert("=1+1"), inert("pgd"), inert(-0.5)
    ("'=1+1", 'pgd', -0.5)
    """
    if not isinstance(value, str):
        return value
    text = value.replace("\r\n", "\n").replace("\r", "\n")
    return f"'{text}" if _FORMULA.match(text) else text


def frame_csv(frame: pd.DataFrame) -> str:
    """A table as CSV, its columns of texts `inert`."""
    from pandas.api.types import is_numeric_dtype

    columns = {name: column if is_numeric_dtype(column) else column.map(inert) for name, column in frame.items()}
    return frame.assign(**{str(name): column for name, column in columns.items()}).to_csv(index=False, lineterminator="\n")
