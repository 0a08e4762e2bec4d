"""What is known of a model beside its numbers: paper, authors, venue, link, further data and parameters."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

_SOURCE = re.compile(r"(?:^|[\s(])([A-Z][\w'-]+(?: et al\.| and [A-Z][\w'-]+)?) (\d{4}), (arXiv:|doi:)([^\s,;)]+)")
_PLACES = {"arXiv:": "https://arxiv.org/abs/", "doi:": "https://doi.org/"}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelEntry:
    """Facts of a model that no record has.

    paper: its title. authors, venue: as a bibliography has them, such as ``ICLR 2018``. link: an address that begins with
    http:// or https://. additional_data: whether more was trained on than the data set; None if unknown. parameters: how
    many the network has, None if unknown.

    Raises ValueError for values of other types, and for other links.
    """

    paper: str = ""
    authors: str = ""
    venue: str = ""
    link: str = ""
    additional_data: bool | None = None
    parameters: int | None = None

    def __post_init__(self) -> None:
        for name in ("paper", "authors", "venue", "link"):
            if not isinstance(getattr(self, name), str):
                raise ValueError(f"Expected `{name}` as text, got {getattr(self, name)!r}")
        if self.link and not re.fullmatch(r"https?://[^\s\"'<>]+", self.link):
            raise ValueError(f"Expected `link` as an address such as https://arxiv.org/abs/1706.06083, got {self.link!r}")
        if self.additional_data is not None and not isinstance(self.additional_data, bool):
            raise ValueError(f"Expected `additional_data` true or false, got {self.additional_data!r}")
        counted = self.parameters is None or (type(self.parameters) is int and self.parameters >= 0)
        if not counted:
            raise ValueError(f"Expected `parameters` as a number of them, got {self.parameters!r}")

    def described(self) -> dict[str, object]:
        """The facts that are known, by name."""
        return {name: value for name, value in asdict(self).items() if value not in ("", None)}

    def over(self, other: ModelEntry) -> ModelEntry:
        """These facts, and of those that are unknown the other's."""
        return ModelEntry(**{**other.described(), **self.described()})  # type: ignore[arg-type]


def entry_of(facts: object, what: str) -> ModelEntry:
    """An entry from a mapping. ValueError, in one line, for anything else; `what` says of whom."""
    known = [field.name for field in fields(ModelEntry)]
    if not isinstance(facts, Mapping):
        raise ValueError(f"Expected facts of {what} by name, got {type(facts).__name__}")
    unknown = [str(name) for name in facts if name not in known]
    if unknown:
        raise ValueError(f"Expected facts of {what} among {', '.join(known)}, got {unknown[0]!r}")
    try:
        return ModelEntry(**facts)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def entries_of(text: str) -> dict[str, ModelEntry]:
    """The entries of a TOML file, a table for each model by its label or its defense.

    Raises ValueError, in one line, for anything else.

    >>> entries_of('[pgd-linf]\\nvenue = "ICLR 2018"')["pgd-linf"].venue
    'ICLR 2018'
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"Expected TOML with a table for each model, got {error}") from None
    return {label: entry_of(facts, label) for label, facts in content.items()}


def entry_in(description: str) -> ModelEntry:
    """Authors and link of the paper that the first line of a documentation names; nothing if it names none.

    >>> entry_in("TRADES in the linf ball, Zhang et al. 2019, arXiv:1901.08573").link
    'https://arxiv.org/abs/1901.08573'
    """
    found = _SOURCE.search(description)
    if found is None:
        return ModelEntry()
    authors, year, place, number = found.groups()
    return ModelEntry(authors=f"{authors} {year}", link=_PLACES[place] + number)


def facts_of_model(entries: Mapping[str, ModelEntry], label: str, defense: str) -> ModelEntry:
    """What is known of a model by its label, and beside that by the name of its defense."""
    return entries.get(label, ModelEntry()).over(entries.get(defense, ModelEntry()))


def joined(first: Mapping[str, ModelEntry], second: Mapping[str, ModelEntry]) -> dict[str, ModelEntry]:
    """Both, the first ones' facts over the second ones'."""
    return {**second, **{name: entry.over(second.get(name, ModelEntry())) for name, entry in first.items()}}
