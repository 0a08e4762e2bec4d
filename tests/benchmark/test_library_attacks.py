"""Attacks of other libraries behind the harness: the library's own images, counted, verified, repeatable."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import importlib.util
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks import balls
from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Targeted, ThreatModel, Untargeted
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.user_models import library_attacks
from advbench.user_models.blockwise import generators
from advbench.user_models.library_attacks import Counted
from advbench.user_models.target import evaluate

pytestmark = pytest.mark.filterwarnings("ignore")

LIBRARIES = ("foolbox", "torchattacks", "adv-lib")


def needs(library: str) -> pytest.MarkDecorator:
    missing = importlib.util.find_spec(library.replace("-", "_")) is None
    return pytest.mark.skipif(missing, reason=f"{library} is optional: {library_attacks._HOW[library]}")


def attack(text: str):
    return registry.attacks.create(Spec.parse(text))


class Net(nn.Module):
    """A small smooth network that counts the images it sees."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, classes))
        for parameter in self.parameters():
            parameter.data = 0.4 * torch.randn(parameter.shape, generator=generator)
        self.asked = 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        return self.layers(x)


def problem(n: int = 8, classes: int = 5) -> tuple[Net, Tensor, Tensor]:
    model = Net(classes).eval()
    x = 0.1 + 0.8 * torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y = model(x).argmax(dim=1)
    model.asked = 0
    return model, x, y


@contextmanager
def access_to(model: nn.Module, n: int, **arguments: object) -> Iterator[tuple[WhiteBox, ExampleRNG]]:
    rng = ExampleRNG.make(0, "attack", torch.arange(n))
    with WhiteBox(model, rng.fork("model"), **arguments) as access:
        yield access, rng.fork("attack")


EVERY = [
    pytest.param(text, marks=needs(text.partition("/")[0]), id=text)
    for text in (
        "foolbox/LinfPGD(steps=5)",
        "foolbox/L2DeepFoolAttack(steps=5)",
        "foolbox/L2FMNAttack(steps=5)",
        "foolbox/InversionAttack",
        "torchattacks/PGD(steps=5)",
        "torchattacks/APGDT(steps=5)",
        "torchattacks/DeepFool(steps=5)",
        "torchattacks/GN",
        "adv-lib/ddn(steps=5)",
        "adv-lib/apgd(n_iter=5)",
        "adv-lib/fmn(steps=5)",
        "adv-lib/pgd_linf(steps=5)",
        "adv-lib/vfga(max_iter=3)",
    )
]


@pytest.mark.parametrize("text", EVERY)
def test_a_foreign_attack_is_one_like_ours(text):
    """It knows its norms, keeps to the threat, counts every pass, repeats, and comes back from its content."""
    found = attack(text)
    content = registry.content("attacks", Spec.parse(text), found)
    assert registry.restore("attacks", content) == found
    assert content["identity"].startswith(text.partition("/")[0])
    assert set(content["arguments"]) == {field.name for field in dataclasses.fields(found)}
    for norm in sorted(found.norms):
        model, x, y = problem()
        bounded = not found.minimal_norm and norm != "none"
        threat = ThreatModel(norm, {"linf": 0.05, "l2": 0.4, "l1": 2.0, "l0": 4.0}[norm] if bounded else None)
        images = []
        for _ in range(2):
            with access_to(model, len(x)) as (access, rng):
                images.append(found(access, x, Untargeted(y), threat, rng))
        assert torch.equal(*images)
        assert not balls.violations(images[0], x, threat).any()
        assert int(access.ledger.forwards.sum()) * 2 == model.asked
        assert not any(parameter.grad is not None for parameter in model.parameters())


@needs("foolbox")
def test_foolbox_gives_what_it_gives_by_itself():
    foolbox = importlib.import_module("foolbox")
    model, x, y = problem()
    threat = ThreatModel("linf", 0.07)
    with access_to(model, len(x)) as (access, rng):
        found = attack("foolbox/LinfPGD(steps=7)")(access, x, Untargeted(y), threat, rng)
    own = foolbox.attacks.LinfPGD(steps=7)
    with generators(library_attacks._seed(rng), x.device):
        _, expected, _ = own(
            foolbox.PyTorchModel(model, bounds=(0, 1)), x, foolbox.criteria.Misclassification(y), epsilons=0.07
        )
    assert torch.equal(found, expected)


@needs("torchattacks")
def test_torchattacks_gives_what_it_gives_by_itself():
    torchattacks = importlib.import_module("torchattacks")
    model, x, y = problem()
    with access_to(model, len(x)) as (access, rng):
        found = attack("torchattacks/PGD(steps=7,alpha=0.02)")(access, x, Untargeted(y), ThreatModel("linf", 0.07), rng)
        backwards = access.ledger.backwards
    with generators(library_attacks._seed(rng), x.device):
        expected = torchattacks.PGD(model, eps=0.07, alpha=0.02, steps=7)(x, y)
    assert torch.equal(found, expected)
    assert (backwards == 7).all()


@needs("adv-lib")
def test_adv_lib_gives_what_it_gives_by_itself():
    module = library_attacks._imported("adv-lib", "adv-lib/ddn")
    model, x, y = problem()
    with access_to(model, len(x)) as (access, rng):
        found = attack("adv-lib/ddn(steps=20)")(access, x, Untargeted(y), ThreatModel("l2", None), rng)
    assert torch.equal(found, module.ddn(model, x, y, steps=20))
    assert (access.ledger.forwards == 20).all()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        pytest.param("foolbox/Nope", "an attack of foolbox, got 'Nope'", marks=needs("foolbox")),
        pytest.param("foolbox/LinfPGD(eps=0.1)", "no argument 'eps'", marks=needs("foolbox")),
        pytest.param("foolbox/LinfPGD(step=3)", "did you mean steps", marks=needs("foolbox")),
        pytest.param("torchattacks/Nope", "an attack of torchattacks, got 'Nope'", marks=needs("torchattacks")),
        pytest.param("torchattacks/MultiAttack", "which needs 'attacks'", marks=needs("torchattacks")),
        pytest.param("adv-lib/perc_al", "an attack of adv-lib among .*ddn", marks=needs("adv-lib")),
    ],
)
def test_what_cannot_be_run_is_one_clear_line(text, message):
    with pytest.raises(ValueError, match=message) as found:
        attack(text)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize("library", LIBRARIES)
def test_a_missing_library_says_how_to_get_it(library, monkeypatch):
    def missing(name):
        raise ModuleNotFoundError(f"No module named {name!r}")

    monkeypatch.setattr(library_attacks.importlib, "import_module", missing)
    with pytest.raises(ValueError, match=f"Expected {library} for the attack {library}/Some.*pip install"):
        library_attacks._imported(library, f"{library}/Some")


@needs("foolbox")
def test_threats_and_goals_that_it_does_not_know_are_refused():
    model, x, y = problem()
    pgd = attack("foolbox/LinfPGD")
    cases = [
        (Untargeted(y), ThreatModel("l2", 0.5), "Expected a threat in linf"),
        (Untargeted(y), ThreatModel("linf", None), "epsilon"),
        (Untargeted(y), ThreatModel("linf", 0.1, None), "box"),
        (Targeted(y, (y + 1) % 5), ThreatModel("linf", 0.1), "targeted"),
    ]
    for goal, threat, message in cases:
        with access_to(model, len(x)) as (access, rng), pytest.raises(ValueError, match=message):
            pgd(access, x, goal, threat, rng)


@needs("torchattacks")
def test_the_number_of_classes_is_the_models():
    """torchattacks takes ten classes for granted where nobody says."""
    _, x, _ = problem()
    with access_to(Net(12), len(x)) as (access, _):
        given = attack("torchattacks/APGDT")._given(Counted(access), x, {"linf": "Linf"}, ThreatModel("linf", 0.1))
    assert given == {"n_classes": 12, "eps": 0.1, "norm": "Linf"}


def test_passes_of_a_part_of_the_batch_are_counted_in_all():
    model, x, _ = problem()
    with access_to(model, len(x)) as (access, _):
        counted = Counted(access)
        part = x[:3].clone().requires_grad_()
        counted(part).sum().backward()
        counted(torch.cat((x, x)))
        counted.settle()
    assert access.ledger.forwards.tolist() == [3, 3, 3, 2, 2, 2, 2, 2]
    assert access.ledger.backwards.tolist() == [1, 1, 1, 0, 0, 0, 0, 0]
    assert int(access.ledger.forwards.sum()) == model.asked


def test_a_stochastic_model_answers_another_library_with_the_mean_of_fresh_draws():
    class Noisy(nn.Module):
        def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
            return rng.normal((3,), x.dtype)

    x = torch.rand(4, 1, 2, 2)
    with access_to(Noisy(), len(x), stochastic=True, draws=2) as (access, _):
        counted = Counted(access)
        first, second = counted(x), counted(x)
        expected = torch.stack([access.rng.at(draw).normal((3,)) for draw in range(4)])
    torch.testing.assert_close(first, expected[:2].mean(dim=0))
    torch.testing.assert_close(second, expected[2:].mean(dim=0))
    assert (access.ledger.forwards == 4).all()


@needs("foolbox")
def test_the_harness_verifies_a_foreign_attack_and_keeps_its_errors_as_rows(cache, monkeypatch):
    model, x, y = problem(12)
    found = evaluate(model, x, y, epsilon=0.3, attack="foolbox/LinfPGD(steps=5),pgd(steps=5)", batch=12)
    assert found.complete
    shares = {record.attack["label"]: examples.report_correct.mean() for record, examples in found.outcomes}
    assert shares["foolbox/LinfPGD(steps=5)"] < 1

    original = library_attacks.FoolboxAttack._attack

    def overstepping(self, *arguments):
        x_adv, claims = original(self, *arguments)
        return 1 - x_adv, claims

    monkeypatch.setattr(library_attacks.FoolboxAttack, "_attack", overstepping)
    found = evaluate(model, x, y, epsilon=0.3, attack="foolbox/LinfPGD(steps=5),pgd(steps=5)", batch=12)
    reasons = {record.attack["label"]: record.reason for record, examples in found.cells if examples is None}
    assert "ViolationError" in reasons["foolbox/LinfPGD(steps=5)"]
    assert not found.complete


LOOK = "from advbench.registry import registry; print(registry.attacks.factory('foolbox/LinfPGD').identity)"


@needs("foolbox")
def test_a_library_that_changes_without_a_new_version_is_another_one(tmp_path):
    """Looked at in processes of their own, with a copy of the library in front of the installed one."""
    installed = Path(importlib.util.find_spec("foolbox").origin).parent
    shutil.copytree(installed, tmp_path / "foolbox", ignore=shutil.ignore_patterns("__pycache__"))

    def identity():
        command = [sys.executable, "-W", "ignore", "-c", LOOK]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    before = identity()
    assert before == attack("foolbox/LinfPGD").identity, "a copy is no change"
    with (tmp_path / "foolbox" / "attacks" / "base.py").open("a") as file:
        file.write("\nSTEP = 0.5\n")
    after = identity()
    assert after != before
    assert after.split()[:2] == before.split()[:2] == ["foolbox", importlib.metadata.version("foolbox")]
