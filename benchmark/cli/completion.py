"""What a shell completes: component names, from the registry's tables. None is described: that would import components."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from advbench.registry.schemes import KINDS, Kind, listed
from advbench.registry.specs import split_list


def names_of(kind: Kind) -> Callable[[str], list[tuple[str, str]]]:
    """A completion of the last name of a comma-separated list: registered names, and what the names of schemes begin with.

    It maps an unfinished text to (completed text, help) pairs. Arguments in brackets are left to the user.
    """

    def complete(incomplete: str) -> list[tuple[str, str]]:
        parts = split_list(incomplete)
        last = parts[-1] if parts and incomplete.rstrip().endswith(parts[-1]) else ""
        earlier = incomplete[: len(incomplete.rstrip()) - len(last)] if last else incomplete
        return [(earlier + name, text) for name, text in _known(kind) if name.startswith(last)]

    return complete


def kinds_and_names(incomplete: str) -> list[tuple[str, str]]:
    """Kinds, and registered names of every kind, that begin with an unfinished text, as (text, help) pairs."""
    from advbench.registry import registry

    names = dict.fromkeys([*KINDS, *(name for kind in KINDS for name in registry.of(kind).names())])
    return [(name, "") for name in names if name.startswith(incomplete)]


def _known(kind: Kind) -> Iterator[tuple[str, str]]:
    from advbench.registry import registry

    yield from ((name, "") for name in registry.of(kind).names())
    found = dict.fromkeys((scheme.prefix for scheme in listed(kind)), "")
    for scheme in listed(kind):
        found[scheme.prefix] = found[scheme.prefix] or scheme.description
    yield from found.items()
