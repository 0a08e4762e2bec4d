"""How to get a model's numbers again: the exact command, from the run's settings or, without these, from its records."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from advbench.reports import formatting
from advbench.results.matrices import RANKED
from advbench.results.record import Record, TargetPart

_OWN, _PREFIX, _HELD = "own", "own:", "own:held:"
"""How records name a model of the user's: its defense, its architecture, and an architecture that lived in memory only."""


@dataclass(frozen=True, slots=True)
class RerunRecipe:
    """A command, the file of settings that it reads (empty if it needs none), and what else to know."""

    command: str
    settings: str
    note: str


def reproduction(records: Sequence[Record], settings: str) -> RerunRecipe:
    """How to run the cells of one model again. settings: those of its run as TOML, empty if they are not known."""
    versions = _environment(records, "advbench")
    where = f"Its numbers come from advbench {versions} on {_devices(records)}; another device can flip a few outcomes."
    if records[0].target["defense"]["name"] == _OWN:
        return RerunRecipe(_evaluate(records), "", where)
    if settings:
        return RerunRecipe("advbench run run.toml", settings, where)
    return RerunRecipe(_run(records), "", f"Read from the records, which do not hold settings that have no flag. {where}")


def _run(records: Sequence[Record]) -> str:
    """The flags of `advbench run` that records show."""
    sources = [record.source for record in records if record.source is not None]
    models = {source["label"]: source for source in sources if source["kind"] == "model"}
    targets = [records[0].target, *models.values()]
    substitutes = _names(source["label"].removeprefix("substitute ") for source in sources if source["kind"] == "substitute")
    training: Mapping[str, object] = records[0].details.get("train") or {}
    return _command(
        ["advbench", "run"],
        {
            "matrix": ",".join(matrix for matrix in RANKED if any(record.matrix == matrix for record in records)),
            "dataset": records[0].dataset["name"],
            "architecture": _names(target["architecture"]["name"] for target in targets if "architecture" in target),
            "outputs": _outputs(records[0].target),
            "defense": _names(target["label"].partition(" / ")[0] for target in targets),
            "substitute": substitutes,
            **_attacked(records),
            "epochs": training.get("epochs"),
            "train-examples": training.get("train_examples"),
        },
        ["--no-clip"] if records[0].threat["box"] is None else [],
    )


def _evaluate(records: Sequence[Record]) -> str:
    """The flags of `advbench evaluate` that records show."""
    target, own = records[0].target, records[0].target["defense"]["arguments"]
    statistics = {name: _listed(own.get(name)) for name in ("mean", "std")}
    name = target["architecture"]["name"]
    attacked, outputs = _attacked(records), _outputs(target)
    if name.startswith(_HELD):
        shown = {key: attacked[key] for key in ("norm", "epsilon", "attack")} | ({"outputs": outputs} if outputs else {})
        given = ", ".join(f"{key}={value!r}" for key, value in shown.items())
        return f"advbench.evaluate(model, x, y, {given})"
    return _command(
        ["advbench", "evaluate", name.removeprefix(_PREFIX)],
        {"dataset": records[0].dataset["name"], "weights": own.get("weights"), **statistics, "outputs": outputs, **attacked},
        ["--stochastic"] if own.get("stochastic") else [],
    )


def _outputs(target: TargetPart) -> object:
    """What a network of the user's was declared to return; None if nothing was."""
    return target["architecture"]["arguments"].get("outputs")


def _attacked(records: Sequence[Record]) -> dict[str, object]:
    epsilons = sorted({record.threat["epsilon"] for record in records if record.threat["epsilon"] is not None})
    return {
        "attack": _names(record.attack["label"] for record in records),
        "norm": records[0].threat["norm"],
        "epsilon": ",".join(map(formatting.epsilon_text, epsilons)),
        "seed": ",".join(map(str, sorted({record.seed for record in records}))),
        "n-examples": records[0].dataset["n"],
    }


def _listed(values: object) -> str:
    """The numbers of a list as a flag takes them; nothing for anything else."""
    return ",".join(f"{value:g}" for value in values if isinstance(value, int | float)) if isinstance(values, list) else ""


def _command(words: Sequence[str], flags: Mapping[str, object], switches: Sequence[str]) -> str:
    given = [word for name, value in flags.items() if value not in (None, "") for word in (f"--{name}", str(value))]
    return shlex.join([*words, *given, *switches])


def _names(names: Iterable[str]) -> str:
    return ",".join(dict.fromkeys(names))


def _environment(records: Sequence[Record], name: str) -> str:
    environments = [record.measured.get("environment") for record in records]
    return (
        _names(
            str(environment[name]) for environment in environments if isinstance(environment, dict) and name in environment
        )
        or "of unknown version"
    )


def _devices(records: Sequence[Record]) -> str:
    return ", ".join(dict.fromkeys(str(record.measured.get("device", "an unknown device")) for record in records))
