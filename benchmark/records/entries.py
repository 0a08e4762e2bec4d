"""What is known of models beside their numbers: what defenses declare, what runs keep, what the user's file says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from advbench.reading import text_of
from advbench.results.entries import ModelEntry, entries_of, entry_in, entry_of


def declared(defenses: Iterable[str]) -> dict[str, ModelEntry]:
    """What registered defenses say of themselves, by name: their `entry`, a mapping, and the paper in their first line.

    What cannot be read as facts is left out: a run does not end for it.
    """
    from advbench.registry import registry

    found = {}
    for name in dict.fromkeys(defenses):
        entry = entry_in(registry.defenses.describe(name))
        own = getattr(registry.defenses.factory(name), "entry", None)
        if isinstance(own, Mapping):
            with suppress(ValueError):
                entry = entry_of(own, name).over(entry)
        if entry.described():
            found[name] = entry
    return found


def kept(content: object) -> dict[str, ModelEntry]:
    """The entries of a run's manifest; those that are damaged are left out."""
    found = {}
    for name, facts in content.items() if isinstance(content, Mapping) else ():
        try:
            found[str(name)] = entry_of(facts, str(name))
        except ValueError:
            continue
    return found


def read_entries(file: str | Path | None) -> dict[str, ModelEntry]:
    """The entries of the user's TOML file; none without a file. Raises ValueError, in one line, for a bad one."""
    if file is None:
        return {}
    try:
        return entries_of(text_of(Path(file)))
    except OSError as error:
        raise ValueError(f"Expected entries of models at {file}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
