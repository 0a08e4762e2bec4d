"""Contents of tasks: frozen, whole in their keys, and the source of what a task needs."""

import dataclasses
import hashlib
import json
import pickle
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.attacks.threat import ThreatModel
from advbench.plan import keys
from advbench.plan.keys import MODULES, key_of
from advbench.registry.sources import source_hash
from advbench.tasks.artefacts import KINDS
from advbench.tasks.calibrate import Converged, DataCalibration, ModelCalibration, SurrogateCalibration
from advbench.tasks.clean import CleanContent
from advbench.tasks.components import Component
from advbench.tasks.craft import CraftContent
from advbench.tasks.diagnose import DiagnoseContent
from advbench.tasks.images import Images
from advbench.tasks.known_noise import KnownNoiseContent
from advbench.tasks.score import AttackFacts, ScoreContent, SourceFacts, TargetFacts
from advbench.tasks.substitute import SubstituteContent
from advbench.tasks.surrogates import Attacked
from advbench.tasks.train import TrainContent
from advbench.tasks.unit_test import UnitTestContent
from advbench.zoo.training import Budget

NET = Component("mlp", (("widths", (8, 8)),), "hash of mlp", (), "file")
PGD = Component("pgd", (("step_size", 0.1), ("steps", 40)), "hash of pgd", (("square", "hash of square"),), "")
IMAGES = Images(seed=3, fingerprint="data", split="test", n=24, batch=16, device="cpu")
THREAT = ThreatModel("linf", 0.1)
BUDGET = Budget(train_examples=300, patience=3)
ATTACKED = Attacked(model="training", surrogate="base", draws=None, compile=False, preparation="preparation")

CRAFT = CraftContent(ATTACKED, PGD, THREAT, transfer=True, calibration="calibration", images=IMAGES)
OTHER = CraftContent(
    Attacked("training", None, 1, compile=False), PGD, THREAT, transfer=False, calibration=None, images=IMAGES
)

CONTENTS = {
    "train": TrainContent(PGD, NET, "data", BUDGET, 3, (("base", "other training"), ("denoiser", "part"))),
    "substitute": SubstituteContent("training", NET, rounds=3, step=0.1, seeds=150, fingerprint="data", seed=3),
    "clean": CleanContent("training", 10, IMAGES),
    "diagnose": DiagnoseContent("training", THREAT, 4, IMAGES),
    "calibrate from images": DataCalibration(PGD, "data", "train", 100),
    "calibrate on a model": ModelCalibration(PGD, ATTACKED, THREAT, IMAGES),
    "calibrate a surrogate": SurrogateCalibration(
        ("draws", "scale"), dataclasses.replace(ATTACKED, preparation=None), Converged(0.9, 64, 32), THREAT, IMAGES
    ),
    "unit-test": UnitTestContent("training", (("base", CRAFT), ("faithful", OTHER)), THREAT, 40, 10, IMAGES),
    "known-noise": KnownNoiseContent("training", CRAFT, 10, IMAGES),
    "craft": CRAFT,
    "score": ScoreContent(
        matrix="black-box",
        target="training",
        clean="clean",
        crafts=("craft", "other craft"),
        substitute="substitute",
        diagnosis="diagnosis",
        unit_test="unit test",
        threat=THREAT,
        minimal_norm=False,
        dataset="digits",
        images=IMAGES,
    ),
}
NEEDS = {
    "train": ("other training", "part"),
    "substitute": ("training",),
    "clean": ("training",),
    "diagnose": ("training",),
    "calibrate from images": (),
    "calibrate on a model": ("training", "preparation"),
    "calibrate a surrogate": ("training",),
    "unit-test": ("training", "preparation", "calibration"),
    "known-noise": ("training", "preparation", "calibration"),
    "craft": ("training", "preparation", "calibration"),
    "score": ("training", "clean", "craft", "other craft", "substitute", "diagnosis", "unit test"),
}

VALID = {"split": "validation", "norm": "l2", "optimizer": "sgd", "schedule": "constant", "augmentation": "crop-flip"}
"""Other values of fields that know only some."""


def others(name: str, value: object) -> Iterator[tuple[str, object]]:
    """Values that differ from `value` in one leaf each, with the path of the leaf; the field `name` holds it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            now = getattr(value, field.name)
            absent = [(f"{field.name} as none", None)] if "None" in str(field.type) else []
            for path, other in (*absent, *others(field.name, now)):
                with suppress(ValueError, IndexError, TypeError):  # a threat model or a budget that refuses the value
                    yield f"{name}.{path}", dataclasses.replace(value, **{field.name: other})
    elif isinstance(value, tuple):
        if not name.endswith("]"):  # inside are pairs of a name and a value
            yield f"{name} without its last", value[:-1]
            yield f"{name} in another order", value[::-1]
        for position, item in enumerate(value):
            for path, other in others(f"{name}[{position}]", item):
                yield path, (*value[:position], other, *value[position + 1 :])
    elif isinstance(value, bool):
        yield name, not value
    elif isinstance(value, int | float):
        yield name, value + 1 if isinstance(value, int) else value / 2 or 0.5
    elif value is None:
        yield name, 7
    else:
        yield name, VALID.get(name, f"another {value}")


CHANGES = [
    pytest.param(content, other, id=f"{path}-{number}")
    for kind, content in CONTENTS.items()
    for number, (path, other) in enumerate(others(kind, content))
    if other != content
]


def test_the_samples_hold_every_kind_and_their_changes_reach_every_field():
    assert {content.kind for content in CONTENTS.values()} == set(KINDS) == set(MODULES)
    reached = {parameter.id.rpartition("-")[0] for parameter in CHANGES}
    assert {"train.budget.patience", "craft.attacked.preparation", "score.crafts[1]"} <= reached
    assert {"clean.images.device", "calibrate a surrogate.converged.cap", "craft.threat.box[0]"} <= reached
    for kind, content in CONTENTS.items():
        for field in dataclasses.fields(content):
            assert any(path.startswith(f"{kind}.{field.name}") for path in reached), (kind, field.name)
    for name in ("budget", "attacked", "images", "attack", "threat", "converged"):
        (part,) = {type(getattr(content, name)) for content in CONTENTS.values() if hasattr(content, name)}
        for field in dataclasses.fields(part):
            assert any(f".{name}.{field.name}" in path for path in reached), (name, field.name)


@pytest.mark.parametrize(("content", "other"), CHANGES)
def test_any_changed_field_is_another_key(content, other):
    assert key_of(content) != key_of(other)


def test_a_key_is_the_hash_of_the_canonical_text_of_the_content_with_code_and_versions():
    expected = {
        "code": source_hash("advbench.tasks.clean"),
        "content": {
            "draws": 10,
            "images": {"batch": 16, "device": "cpu", "fingerprint": "data", "n": 24, "seed": 3, "split": "test"},
            "target": "training",
        },
        "task": "clean",
        "versions": keys.versions(),
    }
    text = json.dumps(expected, sort_keys=True, separators=(",", ":"))
    assert key_of(CONTENTS["clean"]) == hashlib.sha256(text.encode()).hexdigest()


def test_kinds_never_share_a_key():
    assert len({key_of(content) for content in CONTENTS.values()}) == len(CONTENTS)


@given(st.permutations([("steps", 3), ("form", "radial"), ("of", ["pgd", "square"]), ("epsilon", None)]), st.booleans())
def test_the_order_in_which_arguments_are_given_is_in_no_key(pairs, backwards):
    parts = [("square", "one"), ("pgd", "two")]
    described = {
        "arguments": dict(pairs),
        "parts": dict(parts[::-1] if backwards else parts),
        "name": "estimated-noise",
        "source_hash": "hash",
    }
    component = Component.read(described)
    assert component.arguments == (("epsilon", None), ("form", "radial"), ("of", ("pgd", "square")), ("steps", 3))
    assert component.parts == (("pgd", "two"), ("square", "one"))
    usual = Component.read({name: described[name] for name in sorted(described)})
    one, other = (DataCalibration(each, "data", "train", 100) for each in (component, usual))
    assert one == other
    assert key_of(one) == key_of(other)


@pytest.mark.parametrize("kind", CONTENTS)
def test_contents_say_what_they_need_are_frozen_and_travel_to_workers(kind):
    content = CONTENTS[kind]
    assert content.needs == NEEDS[kind]
    assert pickle.loads(pickle.dumps(content)) == content  # noqa: S301 - what joblib does
    assert len({content, dataclasses.replace(content)}) == 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(content, dataclasses.fields(content)[0].name, None)


def test_what_is_no_value_of_a_content_has_no_key():
    with pytest.raises(TypeError, match=r"Expected a value that a content holds, got \{'a': 1\}"):
        key_of(dataclasses.replace(CONTENTS["clean"], draws={"a": 1}))


@pytest.mark.parametrize("component", [NET, PGD, Component("none", (), "hash")])
def test_a_component_is_read_back_from_its_description(component):
    assert Component.read(json.loads(json.dumps(component.described()))) == component
    assert ("parts" in component.described()) == bool(component.parts)
    assert ("identity" in component.described()) == bool(component.identity)


@pytest.mark.parametrize(
    ("described", "message"),
    [
        ({"arguments": {}, "source_hash": "a"}, "`name` and `source_hash`"),
        ({"name": "pgd", "source_hash": "a", "arguments": [1]}, "`arguments`"),
        ({"name": "pgd", "source_hash": "a", "arguments": {"steps": len}}, "numbers, texts and lists"),
    ],
)
def test_a_description_of_another_form_is_refused(described, message):
    with pytest.raises(ValueError, match=message):
        Component.read(described)


def test_the_parts_of_a_record_have_the_form_of_schema_2():
    target = TargetFacts("pgd-linf / mlp", PGD, NET, stochastic=False)
    pgd = {"name": "pgd", "arguments": {"step_size": 0.1, "steps": 40}}
    shown = {
        "label": "pgd-linf / mlp",
        "defense": pgd,
        "architecture": {"name": "mlp", "arguments": {"widths": (8, 8)}},
        "stochastic": False,
    }
    assert target.described() == shown
    assert AttackFacts("pgd", minimal_norm=False, gradients=True, family="gradient ascent", component=PGD).described() == {
        "label": "pgd",
        "minimal_norm": False,
        "gradients": True,
        "family": "gradient ascent",
        **pgd,
        "source_hash": "hash of pgd",
        "parts": {"square": "hash of square"},
    }
    assert SourceFacts("base", "surrogate").described() == {"label": "base", "kind": "surrogate"}
    assert SourceFacts("substitute mlp", "substitute", architecture="mlp").described() == {
        "label": "substitute mlp",
        "kind": "substitute",
        "architecture": {"name": "mlp"},
    }
    assert SourceFacts(target.label, "model", model=target).described() == {**shown, "kind": "model"}


@pytest.mark.parametrize(("kind", "model"), [("model", None), ("substitute", TargetFacts("none", PGD, PGD, False))])
def test_a_source_names_a_model_where_it_is_one_and_nowhere_else(kind, model):
    with pytest.raises(ValueError, match="Expected `model` with the kind 'model' and with no other"):
        SourceFacts("several", kind, model=model)
