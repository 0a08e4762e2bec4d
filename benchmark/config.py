"""The configuration of a run: what the command line and a TOML file set, checked in one place."""

from __future__ import annotations

import difflib
import json
import math
import re
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self, TypeAlias, TypedDict

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from advbench.reading import read_text
from advbench.registry.specs import Spec, split_list
from advbench.results.matrices import RANKED, RankedMatrix


def _specs(value: object) -> object:
    """Component lists: ``"a,b(x=1)"``, or a list of names and ``{name = "a", x = 1}`` tables."""
    if value is None:
        return None
    items = split_list(value) if isinstance(value, str) else value
    if not isinstance(items, list | tuple):
        raise ValueError(f"Expected a list of components, got {value!r}")
    return tuple(_spec(item) for item in items)


def _spec(item: object) -> Spec:
    if isinstance(item, Spec):
        return item
    if isinstance(item, str):
        return Spec.parse(item)
    if isinstance(item, Mapping) and isinstance(item.get("name"), str) and item["name"].strip():
        return Spec.of(item["name"], {key: value for key, value in item.items() if key != "name"})
    raise ValueError(f'Expected a name or a table such as {{name = "pgd", steps = 100}}, got {item!r}')


def _numbers(value: object) -> object:
    """One number, a list of numbers, or a text such as ``0,1,2``."""
    if value is None:
        return None
    parts = split_list(value) if isinstance(value, str) else value if isinstance(value, list | tuple) else (value,)
    return tuple(fraction(part) if isinstance(part, str) else part for part in parts)


def fraction(text: str) -> float:
    """A number; ``8/255`` is one. ValueError, in one line, for anything else."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text) if not text.lstrip("-").isdigit() else int(text)
    except (ValueError, ZeroDivisionError) as error:
        why = ", which divides by zero" if isinstance(error, ZeroDivisionError) else ""
        raise ValueError(f"Expected numbers such as 0.1 or 8/255, got {text!r:.80}{why}") from None


def _parameters(value: object) -> object:
    """Parameters of jobs: a table, or a text such as ``partition=gpu,gpus_per_node=1``."""
    if not isinstance(value, str):
        return value
    pairs = [part.partition("=") for part in split_list(value)]
    if not all(name.strip() and sign and text.strip() for name, sign, text in pairs):
        raise ValueError(f"Expected parameters such as partition=gpu,gpus_per_node=1, got {value!r:.80}")
    return {name.strip(): int(text) if text.strip().isdigit() else text.strip() for name, _, text in pairs}


Outputs: TypeAlias = Literal["logits", "probabilities", "log-probabilities"]
"""What a user's network returns; attacks follow probabilities through their logarithm."""

Specs = Annotated[tuple[Spec, ...], BeforeValidator(_specs)]


Components: TypeAlias = str | Sequence[str | Spec | Mapping[str, object]]
"""Components as settings name them: a text such as ``"a,b(x=1)"``, or specs, texts, and mappings with a `name`."""
Numbers: TypeAlias = float | str | Sequence[float | str]
"""One number, several, or a text such as ``"0.1,8/255"``."""


class RunSettings(TypedDict, total=False):
    """The settings of a run as a caller gives them: the fields of `Config`, each as itself or as text; None: the default."""

    matrix: str | Sequence[str] | None
    dataset: str | None
    data_dir: str | Path | None
    architecture: Components | None
    defense: Components | None
    attack: Components | None
    substitute: Components | None
    norm: str | None
    epsilon: Numbers | None
    clip: bool | None
    compile: bool | None
    precision: str | None
    outputs: str | None
    seed: int | str | Sequence[int] | None
    n_examples: int | None
    train_examples: int | None
    epochs: int | None
    batch_size: int | None
    learning_rate: float | None
    optimizer: str | None
    momentum: float | None
    nesterov: bool | None
    weight_decay: float | None
    schedule: str | None
    augmentation: str | None
    keep_epochs: bool | None
    device: str | None
    jobs: int | None
    backend: str | None
    engine: str | None
    address: str | None
    time_limit: float | None
    slots_per_device: int | None
    pilots: int | None
    slurm: str | Mapping[str, str | int] | None
    out: str | Path | None
    fresh: bool | None
    draws: int | None
    score_draws: int | None
    substitute_rounds: int | None
    substitute_step: float | None
    substitute_seeds: int | None
    calibration_examples: int | None
    batch: int | None
    unit_test: bool | None
    unit_test_images: int | None
    budget: int | None
    visited: bool | None
    known_noise: bool | None


BUDGET = (
    *("epochs", "train_examples", "batch_size", "learning_rate", "optimizer", "momentum", "nesterov", "weight_decay"),
    *("schedule", "augmentation"),
)
"""Settings of every training."""
_NAMED = 30
"""Settings that a line names where an unknown one is like none of them."""
_LARGEST = 10**8
_LARGEST_SEED = 2**63 - 1


class Config(BaseModel):
    """One run of advbench. Every field stands under the same name in a TOML file, with ``-`` or ``_``.

    matrix: some of `advbench.results.matrices.RANKED`, or `all`. dataset: a name, ``npz:PATH`` or ``folder:PATH``. norm: of
    the threat; ``none`` for corruptions, whose strength is an argument of the attack. epsilon: one or several, in pixel
    units of [0, 1]; the data set's usual one where absent. clip: whether adversarial images keep to the range of pixels;
    where not, as in some papers, the cells stand on no leaderboard. n_examples: scored test images, all where absent.
    train_examples, epochs, batch_size, learning_rate, optimizer, momentum, nesterov, weight_decay, schedule, augmentation:
    of every training, as `advbench.zoo.training.Budget` has them; the data set's usual ones where absent. keep_epochs:
    whether a training of one network keeps its weights after every epoch in the model cache; no part of a key. draws:
    passes averaged per question to a stochastic defense (EOT); where absent as many as a gradient's direction needs to
    converge on held-out images, and four for attacks without gradients. score_draws: K, the passes that choose the worst
    candidate of a stochastic defense, and again as many that score it. substitute, substitute_rounds, substitute_step,
    substitute_seeds: the black-box attacker's architectures, rounds of Jacobian-based augmentation, its step lambda, and
    how many held-out images it starts from. calibration_examples: held-out images that a model is attacked on to calibrate
    an attack. batch: images per compute batch, measured where absent. unit_test: whether the attacks are tested on
    `unit_test_images` of the scored images on models with a planted adversarial image (`advbench.tasks.planting`): those of
    the white-box matrix, and those that ask the model itself. budget: passes through the model for each image in each
    attack, forwards and backwards together, after which the best image that was asked about counts
    (`advbench.attacks.watch`); without end where absent. visited: whether the best image that an attack asked about
    stands in the records beside what it returned, for models that are not random. known_noise: whether random models are
    also attacked, within the norm and with a fixed radius, by one who knows the draws that they are scored under
    (`advbench.tasks.known_noise`). compile: whether deterministic models are compiled to be attacked; scores always take
    the model as it is. precision: of a model's products while it is attacked; scores are always of float32. outputs:
    what the user's networks (architectures ``own:TARGET``) return, logits where absent. engine: where tasks run, on this
    machine by default. address: of a dask scheduler that is there already. time_limit: seconds that one task may take,
    without end where absent. slots_per_device: tasks side by side on each device, in place of `jobs`. pilots: jobs of
    the engine slurm, one where absent. slurm: their parameters, such as ``{partition = "gpu"}``.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, arbitrary_types_allowed=True, alias_generator=lambda name: name.replace("_", "-")
    )

    matrix: tuple[RankedMatrix, ...] = RANKED
    dataset: str = "digits"
    data_dir: Path | None = None
    architecture: Specs | None = None
    defense: Specs | None = None
    attack: Specs | None = None
    substitute: Specs | None = None
    norm: Literal["linf", "l2", "l1", "none"] = "linf"
    epsilon: Annotated[tuple[float, ...] | None, BeforeValidator(_numbers)] = None
    clip: bool = True
    compile: bool = False
    precision: Literal["float32", "tf32", "bfloat16"] = "float32"
    outputs: Outputs | None = None
    seed: Annotated[tuple[int, ...], BeforeValidator(_numbers)] = (0,)
    n_examples: int | None = Field(default=None, ge=1, le=_LARGEST)
    train_examples: int | None = Field(default=None, ge=1, le=_LARGEST)
    epochs: int | None = Field(default=None, ge=1, le=_LARGEST)
    batch_size: int | None = Field(default=None, ge=1, le=_LARGEST)
    learning_rate: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    optimizer: str | None = None
    momentum: float | None = Field(default=None, ge=0, lt=1, allow_inf_nan=False)
    nesterov: bool | None = None
    weight_decay: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    schedule: str | None = None
    augmentation: str | None = None
    keep_epochs: bool = False
    device: str = "auto"
    jobs: int | None = Field(default=None, ge=1, le=_LARGEST)
    backend: Literal["loky", "threading"] = "loky"
    engine: Literal["local", "pilots", "slurm", "dask"] = "local"
    address: str | None = None
    time_limit: float | None = Field(default=None, gt=0, allow_inf_nan=False)
    slots_per_device: int | None = Field(default=None, ge=1, le=_LARGEST)
    pilots: int | None = Field(default=None, ge=1, le=_LARGEST)
    slurm: Annotated[dict[str, str | int] | None, BeforeValidator(_parameters)] = None
    out: Path = Path("advbench-out")
    fresh: bool = False
    draws: int | None = Field(default=None, ge=1, le=_LARGEST)
    score_draws: int = Field(default=10, ge=1, le=_LARGEST)
    substitute_rounds: int = Field(default=3, ge=0, le=_LARGEST)
    substitute_step: float = Field(default=0.1, gt=0, allow_inf_nan=False)
    substitute_seeds: int = Field(default=150, ge=10, le=_LARGEST)
    calibration_examples: int = Field(default=200, ge=1, le=_LARGEST)
    batch: int | None = Field(default=None, ge=1, le=_LARGEST)
    unit_test: bool = False
    unit_test_images: int = Field(default=64, ge=2, le=_LARGEST)
    budget: int | None = Field(default=None, ge=1, le=_LARGEST)
    visited: bool = False
    known_noise: bool = False

    @field_validator("matrix", mode="before")
    @classmethod
    def _all_matrices(cls, value: object) -> object:
        if not isinstance(value, str | list | tuple):
            return value
        items = split_list(value) if isinstance(value, str) else list(value)
        chosen = RANKED if "all" in items else items
        for name in chosen:
            if name not in RANKED:
                close = difflib.get_close_matches(str(name).lower(), (*RANKED, "all"), n=1)
                hint = f": did you mean {close[0]}?" if close else ""
                raise ValueError(f"Expected {', '.join(RANKED)} or all, got {name!r:.80}{hint}")
        return tuple(dict.fromkeys(chosen))

    @field_validator("out")
    @classmethod
    def _a_folder(cls, value: Path) -> Path:
        """Refuse a file before anything is computed."""
        if value.exists() and not value.is_dir():
            raise ValueError(f"Expected a folder, got a file: {value}")
        return value

    @field_validator("out", "data_dir")
    @classmethod
    def _where_the_run_began(cls, value: Path | None) -> Path | None:
        """From the root, so that code which changes the working directory moves no files."""
        return None if value is None else value.absolute()

    @field_validator("epsilon")
    @classmethod
    def _radii(cls, value: tuple[float, ...] | None) -> tuple[float, ...] | None:
        for epsilon in value or ():
            if not (math.isfinite(epsilon) and epsilon > 0):
                raise ValueError(f"Expected `epsilon` > 0, got {epsilon:g}")
        return tuple(sorted(set(value))) if value else None

    @model_validator(mode="after")
    def _no_epsilon_without_a_norm(self) -> Self:
        if self.norm == "none" and self.epsilon is not None:
            raise ValueError("Expected no `epsilon` with the norm none: give the attack its strength, such as sigma=0.3")
        return self

    @model_validator(mode="after")
    def _no_unit_test_without_a_norm(self) -> Self:
        if self.norm == "none" and self.unit_test:
            raise ValueError("Expected no `unit_test` with the norm none: a planted image needs a ball to lie in")
        return self

    @model_validator(mode="after")
    def _no_budget_that_is_spent_twice(self) -> Self:
        if self.budget is not None and self.precision != "float32":
            raise ValueError(f"Expected no `budget` with precision {self.precision}, in which images may be attacked again")
        return self

    @model_validator(mode="after")
    def _places_that_fit(self) -> Self:
        if self.jobs is not None and self.slots_per_device is not None:
            raise ValueError(f"Expected `jobs` or `slots_per_device`, got both ({self.jobs} and {self.slots_per_device})")
        if self.address is not None and self.engine != "dask":
            raise ValueError(f"Expected an `address` with the engine dask only, got {self.address} with {self.engine}")
        for name in ("pilots", "slurm"):
            if getattr(self, name) is not None and self.engine != "slurm":
                raise ValueError(f"Expected `{name}` with the engine slurm only, got it with {self.engine}")
        if self.time_limit is not None and self.backend == "threading":
            raise ValueError("Expected no `time_limit` with the backend threading: a thread cannot be ended; use loky")
        return self

    @field_validator("seed")
    @classmethod
    def _seeds(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        if not value or min(value) < 0 or max(value) > _LARGEST_SEED:
            raise ValueError(f"Expected seeds in [0, {_LARGEST_SEED}] such as 0,1,2, got {_shortened(value) or 'none'}")
        return tuple(dict.fromkeys(value))


_QUOTED = re.compile(r""""(?:[^"\\\n]|\\.)*+"|'[^'\n]*+'""")
_DOTTED = re.compile(r"(?<![\w-])[\w-]++(?:[ \t]*+\.[ \t]*+[\w-]++){16}")
"""A key of more parts than any setting has; tomllib takes memory by the square of their number."""


def read_toml(path: Path) -> dict[str, object]:
    """The tables of a TOML file; ValueError in one line if there is none or if it does not parse."""
    try:
        with path.open("rb") as file:
            text = read_text(file)
    except OSError as error:
        raise ValueError(f"Expected a TOML file at {path}: {error.strerror or error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    if _DOTTED.search(_QUOTED.sub("q", text)):
        raise ValueError(f"{path}: not valid TOML: nested too deeply")
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError(f"{path}: not valid TOML: nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{path}: not valid TOML: {error!s:.200}") from None


def make_config(file: Path | None = None, /, **settings: object) -> Config:
    """The configuration from a TOML file (or none) and settings that override it; those that are None do not count.

    Raises ValueError in one line that names the field, what was expected and what came.
    """
    values = {key.replace("_", "-"): value for key, value in (read_toml(file) if file else {}).items()}
    values |= {key.replace("_", "-"): value for key, value in settings.items() if value is not None}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ValueError(_one_line(error, file)) from None
    except RecursionError:
        raise ValueError(f"{file or 'settings'}: Expected numbers, names and lists of them, got deeper nesting") from None


def _shortened(values: Sequence[int]) -> str:
    return f"{','.join(f'{value:.6g}' if value > _LARGEST_SEED else str(value) for value in values[:10]):.100}"


_WHERE = ("data_dir", "device", "jobs", "backend", "slots_per_device", "time_limit", "out", "fresh")
_OF_THE_PLACE = frozenset({*_WHERE, "engine", "address", "pilots", "slurm"})


def to_toml(config: Config) -> str:
    """The settings that a result depends on, as a TOML file that `make_config` reads; those left open are left out."""
    values = {name: getattr(config, name) for name in Config.model_fields if name not in _OF_THE_PLACE}
    return "".join(f"{name.replace('_', '-')} = {_toml(value)}\n" for name, value in values.items() if value is not None)


def _toml(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, str | Spec):
        return json.dumps(value.text if isinstance(value, Spec) else value)
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _one_line(error: ValidationError, file: Path | None) -> str:
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "configuration"
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        known = [name.replace("_", "-") for name in Config.model_fields]
        close = difflib.get_close_matches(field.replace("_", "-"), known, n=1)
        some = f"known are {', '.join(known[:_NAMED])} and {len(known) - _NAMED} more (help(advbench.run))"
        hint = f"did you mean {close[0]}?" if close else some
        return f"{file or 'settings'}: unknown setting {field!r:.80}: {hint}"
    if message.startswith("Expected"):
        return f"`{field:.80}`: {message:.300}"
    return f"`{field:.80}`: {message[:1].lower() + message[1:]}, got {first['input']!r:.200}"
