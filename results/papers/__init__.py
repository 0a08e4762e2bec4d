"""The papers' tables, claims, protocols and ambiguities as data, transcribed from their texts in our own words."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any, TypeAlias

Value: TypeAlias = str | float

PAPERS = ("gu2014", "shaham2015", "mosca2018", "malade2018", "sgr2018")
"""The keys of the papers, oldest first."""


@dataclass(frozen=True, slots=True)
class PaperTable:
    """A table as it was printed.

    id: the paper's key, a dot, and the table's name. columns: their names; the first ones name the row. units: of each
    column. rows: texts and numbers, one per column.
    """

    id: str
    caption: str
    columns: tuple[str, ...]
    units: tuple[str, ...]
    rows: tuple[tuple[Value, ...], ...]

    def cell(self, column: str, *row: str) -> float:
        """The number in `column` of the row whose first entries are `row`. Raises ValueError if there is none."""
        if column not in self.columns:
            raise ValueError(f"{self.id}: expected a column among {', '.join(self.columns)}, got {column!r}")
        for entries in self.rows:
            if entries[: len(row)] == row:
                return float(entries[self.columns.index(column)])
        raise ValueError(f"{self.id}: expected a row that begins with {', '.join(row)}, found none")


@dataclass(frozen=True, slots=True)
class PaperClaim:
    """A claim that is tested: in words, and as an inequality between the paper's cells, empty for one of our own."""

    id: str
    text: str
    test: str


@dataclass(frozen=True, slots=True)
class Paper:
    """What a paper printed.

    key: as in `PAPERS`. arxiv, doi: empty if the paper has none. claims: by id, those that the paper states and
    those that we test beside them. ambiguities: what its text leaves open and how it is read here, by id.
    """

    key: str
    title: str
    authors: tuple[str, ...]
    year: int
    arxiv: str
    doi: str
    tables: Mapping[str, PaperTable]
    claims: Mapping[str, PaperClaim]
    ambiguities: Mapping[str, str]

    def claim(self, id_: str) -> PaperClaim:
        """The claim of that id. Raises ValueError if there is none."""
        if id_ not in self.claims:
            raise ValueError(f"Expected a claim among {', '.join(self.claims)}, got {id_!r}")
        return self.claims[id_]

    @property
    def short(self) -> str:
        """Authors and year, as ``Gu & Rigazio 2014``."""
        names = [author.split()[-1] for author in self.authors]
        who = f"{names[0]} et al." if len(names) > 2 else " & ".join(names)
        return f"{who} {self.year}"

    @property
    def source(self) -> str:
        """Where it is found: the arXiv number, else the DOI."""
        return f"arXiv:{self.arxiv}" if self.arxiv else f"doi:{self.doi}"


@cache
def load(key: str) -> Paper:
    """The paper `key`. Raises ValueError for an unknown one."""
    if key not in PAPERS:
        raise ValueError(f"Expected a paper among {', '.join(PAPERS)}, got {key!r}")
    content = tomllib.loads((resources.files(__name__) / f"{key}.toml").read_text(encoding="utf-8"))
    head = content["paper"]
    return Paper(
        key=key,
        title=head["title"],
        authors=tuple(head["authors"]),
        year=head["year"],
        arxiv=head["arxiv"],
        doi=head["doi"],
        tables={entry["id"]: _table(entry) for entry in content["table"] if entry["rows"]},
        claims={each["id"]: PaperClaim(each["id"], each["text"], each.get("test", "")) for each in content["claim"]},
        ambiguities={entry["id"]: f"{entry['text']} Read as: {entry['reading']}" for entry in content["ambiguity"]},
    )


def _table(content: Mapping[str, Any]) -> PaperTable:
    rows = tuple(tuple(row) for row in content["rows"])
    return PaperTable(content["id"], content["caption"], tuple(content["columns"]), tuple(content["units"]), rows)
