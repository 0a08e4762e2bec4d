"""A plan in a run's folder, so that other processes and machines make the very same one: ``OUT/plan.json``.

It holds the settings, the place, and hashes of what the keys depend on; never code or pickled objects. A worker plans again
by itself and compares: whatever differs on its machine is named in one line.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tomllib
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from advbench.config import Config, make_config, to_toml
from advbench.files import write_atomically
from advbench.plan.compute_batch import Batches, sensible
from advbench.plan.keys import MODULES, versions
from advbench.plan.place import Place
from advbench.plan.plan import Plan, make_plan
from advbench.reading import json_of, text_of
from advbench.registry.sources import source_hash
from advbench.registry.specs import Shown
from advbench.zoo import checkpoints

NAME = "plan.json"
_SCHEMA = 1
_LARGEST = 2**25
_TOKEN = "token"
"""A file of the model cache that tells it from others."""


@dataclass(frozen=True, slots=True)
class Saved:
    """What a run's folder says of its plan.

    settings: all that results depend on, as TOML. labels: what people read of the defenses. data_dir, device: as the user
    gave them. folder: where the run was started. cache, token: the model cache, and what tells it from others. place: None
    until a worker has said what device it has. keys: a hash of the plan's keys. facts: hashes of what these depend on.
    fresh: whether the first worker is to forget finished results.
    """

    settings: str
    labels: tuple[str, ...] | None
    data_dir: str | None
    device: str
    folder: str
    cache: str
    token: str
    place: Place | None = None
    keys: str = ""
    facts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    fresh: bool = False

    @staticmethod
    def of(config: Config) -> Saved:
        """The settings of a run that nothing is planned of yet."""
        return Saved(
            settings=to_toml(config),
            labels=None if config.defense is None else tuple(map(str, config.defense)),
            data_dir=None if config.data_dir is None else str(config.data_dir),
            device=config.device,
            folder=str(Path.cwd()),
            cache=str(checkpoints.cache_dir().absolute()),
            token=token(),
            fresh=config.fresh,
        )

    def planned(self, plan: Plan) -> Saved:
        """The same with the place and the keys of its plan."""
        facts = {"data": plan.data.fingerprint} | versions()
        facts |= {str(kind): source_hash(name) for kind, name in MODULES.items()}
        return dataclasses.replace(self, place=plan.place, keys=_hash(plan), facts=facts, fresh=False)

    def config(self, out: Path, **given: object) -> Config:
        """The configuration that was saved, for a folder that is called `out` on this machine. given: as it runs here."""
        here: dict[str, object] = {"out": out, "device": self.device, "data_dir": self.data_dir}
        here |= {name: value for name, value in given.items() if value is not None}
        config = make_config(None, **(tomllib.loads(self.settings) | here))
        if self.labels is None or config.defense is None:
            return config
        shown = tuple(
            spec if spec.text == label else Shown(spec.name, spec.arguments, label)
            for spec, label in zip(config.defense, self.labels, strict=True)
        )
        return config.model_copy(update={"defense": shown})

    def same_run(self, other: Saved) -> bool:
        """Whether both are of the same settings and devices, so that what one measured serves the other."""
        mine, theirs = (
            dataclasses.replace(each, place=None, keys="", facts={}, fresh=False, folder="") for each in (self, other)
        )
        return mine == theirs

    def check(self, plan: Plan) -> None:
        """ValueError, in one line that says what differs, if a plan that was made here is another one than was saved."""
        if _hash(plan) == self.keys:
            return
        found = self.planned(plan).facts
        for name, value in self.facts.items():
            if found.get(name) != value:
                what = {"data": f"data set {plan.config.dataset} (fingerprint)"}.get(name) or (
                    f"code of the tasks {name!r}" if name in MODULES else f"version of {name}"
                )
                raise ValueError(f"Expected the {what} of the run, {value:.16}, got {found.get(name)!s:.16} here")
        raise ValueError(
            "Expected the plan of the run, got another one here: a model or an attack of yours, a file that it reads, or an "
            "environment variable differs"
        )

    def write(self, out: Path) -> None:
        """Write it into a run's folder, in place of another one."""
        content = {"schema": _SCHEMA, **asdict(self)}
        if self.place is not None:
            batches = {name: [found.fastest, found.divisible] for name, found in self.place.batches.items()}
            content |= {"place": asdict(self.place) | {"batches": batches}}
        text = json.dumps(content, indent=1, sort_keys=True) + "\n"
        with suppress(OSError):
            if (out / NAME).read_bytes() == text.encode():
                return
        write_atomically(out / NAME, text)

    @staticmethod
    def read(out: Path) -> Saved:
        """What the folder of a run says. FileNotFoundError if there is none, ValueError, in one line, if it is damaged."""
        path = out / NAME
        text = text_of(path, _LARGEST)
        try:
            return _saved(json_of(text))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            said = " ".join(f"{type(error).__name__}: {error}".split())
            raise ValueError(f"{path}: Expected the plan of a run, got something else ({said:.100})") from None


def same_plan(saved: Saved, out: Path, **given: object) -> Plan:
    """The saved plan, made on this machine. given: settings of the place, as `Saved.config` has them.

    ValueError, in one line, if the device, the data, the code or a model of the user's is another one here.
    """
    if saved.place is None:
        raise ValueError(f"Expected a plan with a place in {out / NAME}, got one that no worker has planned yet")
    config = saved.config(out, **given)
    plan = make_plan(config, measure=False, place=saved.place)
    if not plan.devices:
        raise ValueError(f"Expected the device of the run, {saved.place.name}, got none such here as {config.device!r}")
    saved.check(plan)
    return plan


def token() -> str:
    """What tells the model cache of this process from others, made at the first call; empty for one that is read-only."""
    path = checkpoints.cache_dir() / _TOKEN
    try:
        if not path.is_file():
            write_atomically(path, uuid.uuid4().hex)
        return path.read_text(encoding="ascii").strip()
    except OSError:
        return ""


def use_cache(saved: Saved) -> None:
    """Use the model cache of a run, unless $ADVBENCH_CACHE says another. ValueError, in one line, if it is not the same."""
    os.environ.setdefault("ADVBENCH_CACHE", saved.cache)
    place = checkpoints.cache_dir()
    try:
        found = (place / _TOKEN).read_text(encoding="ascii").strip()
    except OSError:
        found = ""
    if saved.token and found != saved.token:
        raise ValueError(
            f"Expected the model cache of the run, {saved.cache} there, got another one, {place}: set ADVBENCH_CACHE to a "
            "folder that all machines share"
        )


def _hash(plan: Plan) -> str:
    return hashlib.sha256("\n".join(sorted(plan.tasks)).encode()).hexdigest()


def _saved(read: Any) -> Saved:
    if read.pop("schema") != _SCHEMA:
        raise ValueError("another version's")
    texts = ("settings", "device", "folder", "cache", "token", "keys")
    if not all(isinstance(read[name], str) for name in texts):
        raise TypeError("texts that are none")
    place = read.pop("place")
    if place is not None:
        batches = {str(name): Batches(*pair) for name, pair in place["batches"].items() if sensible(pair)}
        place = Place(str(place["kind"]), str(place["name"]), batches, tuple(map(str, place["answers"])))
    labels = read.pop("labels")
    facts = {str(name): str(value) for name, value in read.pop("facts").items()}
    return Saved(place=place, labels=None if labels is None else tuple(map(str, labels)), facts=facts, **read)
