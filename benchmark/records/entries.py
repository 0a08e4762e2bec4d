"""What is known of models beside their numbers: what defenses declare, what runs keep, what the user's file says."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from advbench.reading import text_of
from advbench.results.entries import ModelEntry, entries_of, entry_in, entry_of

if TYPE_CHECKING:
    from advbench.registry.registry import Registry


def declared(defenses: Iterable[str], attacks: Iterable[str] = ()) -> dict[str, ModelEntry]:
    """What registered components say of themselves: their `entry`, a mapping, and the paper in their first line.

    Defenses are found by name, attacks as ``attack NAME``. What cannot be read as facts is left out: a run does not end for
    it.
    """
    from advbench.registry import registry

    found = _declared(registry.defenses, defenses)
    return found | {f"attack {name}": entry for name, entry in _declared(registry.attacks, attacks).items()}


def _declared(known: Registry[object], names: Iterable[str]) -> dict[str, ModelEntry]:
    found = {}
    for name in dict.fromkeys(names):
        entry = entry_in(known.describe(name))
        own = getattr(known.factory(name), "entry", None)
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
