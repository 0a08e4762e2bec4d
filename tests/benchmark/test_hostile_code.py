"""Models and attacks that write where they should not, or end the program: the numbers are those of well-behaved twins."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import DecisionBased, ScoreBased, WhiteBox
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted, cross_entropy
from advbench.config import make_config
from advbench.defenses.defended import Defended, Detector
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.registry import registry
from advbench.tasks import craft as craft_task
from advbench.tasks.artefacts import artefact
from advbench.tasks.craft import read_craft
from advbench.tasks.evaluation import count, craft, score
from advbench.user_models.target import evaluate
from advbench.zoo.data import Split

N, EPSILON = 24, 0.03
CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _own_cache(cache):
    """Compute batches are remembered in a cache of the test's own."""


# --- models that write into their input


def data_clamp(x: Tensor) -> Tensor:
    x.data.clamp_(0.05, 0.6)
    return x


def straight_through(x: Tensor) -> Tensor:
    return x + (x.clamp(0.05, 0.6) - x).detach()


def in_place(x: Tensor) -> Tensor:
    return x.sub_(0.3).div_(0.5)


def normalised(x: Tensor) -> Tensor:
    return (x - 0.3) / 0.5


def overwritten(x: Tensor) -> Tensor:
    return x.copy_(x.flip(-1))


def flipped(x: Tensor) -> Tensor:
    return x.flip(-1)


def through_numpy(x: Tensor) -> Tensor:
    x.detach().numpy()[...] += 0.25
    return x


def shifted(x: Tensor) -> Tensor:
    return x + 0.25


class Net(nn.Module):
    """Two logits, the second of which is w.m(x) + b for a map m of the pixels, so that distances are known."""

    def __init__(self, pixels=normalised) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(3)))
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        score = (self.pixels(x).flatten(1) - 0.5) @ self.weight
        return torch.stack((torch.zeros_like(score), score), dim=1)


PAIRS = {
    "data": (data_clamp, straight_through),
    "in place": (in_place, normalised),
    "copy": (overwritten, flipped),
    "numpy": (through_numpy, shifted),
}
pairs = pytest.mark.parametrize(("writer", "twin"), PAIRS.values(), ids=PAIRS.keys())


def problem(twin) -> tuple[Tensor, Tensor]:
    """Images far from the borders, and their labels by the twin."""
    x = 0.35 + 0.3 * torch.rand(N, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        return x, Net(twin)(x.clone()).argmax(dim=1)


def numbers(result) -> dict[str, object]:
    return result.summary()["examples"]


@pairs
@pytest.mark.parametrize(
    "attack", ["pgd(steps=5),fmn(steps=10),square(queries=20)", "foolbox/LinfPGD(steps=5),fmn(steps=5)"]
)
def test_a_model_that_writes_into_its_input_has_the_numbers_of_its_twin(writer, twin, attack):
    if "/" in attack:
        pytest.importorskip("foolbox")
    x, y = problem(twin)
    images = x.clone()
    found = evaluate(Net(writer), x, y, epsilon=EPSILON, attack=attack, batch=16)
    expected = evaluate(Net(twin), x, y, epsilon=EPSILON, attack=attack, batch=16)
    assert found.complete
    assert numbers(found) == numbers(expected)
    assert 0 < found.robust.value < found.clean.value
    assert torch.equal(x, images)


def test_a_writing_model_has_the_accuracy_of_the_closed_form():
    x, y = problem(normalised)
    found = evaluate(Net(in_place), x, y, epsilon=EPSILON, attack="pgd(steps=10)", batch=N)
    weight = Net().weight.detach()
    lead = (normalised(x).flatten(1) - 0.5) @ weight
    distance = lead.abs() / (weight.abs().sum() / 0.5)
    assert (distance - EPSILON).abs().min() > 1e-4, "no image lies on the edge"
    assert found.clean.value == 1.0
    assert numbers(found)["robust"] == (distance > EPSILON).double().tolist()
    np.testing.assert_allclose(np.array(numbers(found)["distance"], float), distance.numpy(), rtol=0.02)


@pairs
def test_every_question_leaves_the_images_of_who_asks(writer, twin):
    x, y = problem(twin)
    rng = ExampleRNG.make(0, "attack", torch.arange(N))
    for access_type, ask in (
        (WhiteBox, lambda access, x: access.loss_gradient(x, Untargeted(y), cross_entropy).gradient),
        (WhiteBox, lambda access, x: access.sides(x, Untargeted(y), cross_entropy).uphill),
        (WhiteBox, lambda access, x: access.pullback(x)[1](torch.ones(1, N, 2))),
        (ScoreBased, lambda access, x: access.logits(x)),
        (DecisionBased, lambda access, x: access.labels(x)),
    ):
        images = x.clone()
        with access_type(Net(writer), rng) as access, access_type(Net(twin), rng) as other:
            assert torch.equal(ask(access, images), ask(other, x.clone()))
        assert torch.equal(images, x)


class Score(nn.Module):
    """A detector that rejects bright images."""

    def __init__(self, pixels) -> None:
        super().__init__()
        self.pixels = pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.pixels(x).flatten(1).mean(dim=1) - 0.42


def test_a_detector_that_writes_into_its_input_has_the_numbers_of_its_twin():
    x, y = problem(normalised)
    split, threat = Split.of(x, y), ThreatModel("linf", EPSILON)
    scored = []
    for detector, pixels in ((in_place, in_place), (normalised, normalised)):
        defended = Defended(Net(pixels), detector=Detector(Score(detector)))
        settings = {"seed": 0, "batch": 10, "device": CPU}
        clean = count(defended, split, draws=1, **settings)
        found = craft(PGD(steps=5), defended.surrogates["faithful"], split, threat, draws=1, **settings)
        cell = score(defended, split, clean, [found.x_adv], norm="linf", minimal_norm=False, **settings)
        scored.append((clean.score, found.x_adv, cell.examples.report_score, cell.examples.report_correct))
    for one, other in zip(*scored, strict=True):
        np.testing.assert_array_equal(one, other)
    assert 0 < int(torch.as_tensor(scored[0][0] > 0).sum()) < N


# --- attacks that write into what they are given, change the process, or end it


def leave(x: Tensor, goal, access) -> None:
    """Nothing, for comparison."""


def labels(x: Tensor, goal, access) -> None:
    goal.y.add_(1)


def images(x: Tensor, goal, access) -> None:
    x.data.fill_(0.5)


def indices(x: Tensor, goal, access) -> None:
    access.index.add_(7)


def weights(x: Tensor, goal, access) -> None:
    for parameter in access.model.parameters():
        parameter.data.zero_()


def default_dtype(x: Tensor, goal, access) -> None:
    torch.set_default_dtype(torch.float64)


def gradient_mode(x: Tensor, goal, access) -> None:
    torch.set_grad_enabled(False)


def working_directory(x: Tensor, goal, access) -> None:
    os.chdir("/")


def threads(x: Tensor, goal, access) -> None:
    torch.set_num_threads(3)


def exit_politely(x: Tensor, goal, access) -> None:
    raise SystemExit(0)


def interrupt(x: Tensor, goal, access) -> None:
    raise KeyboardInterrupt


def end_a_generator(x: Tensor, goal, access) -> None:
    raise GeneratorExit("enough")


def control_c(x: Tensor, goal, access) -> None:
    os.kill(os.getpid(), signal.SIGINT)


def swallow_control_c(x: Tensor, goal, access) -> None:
    with contextlib.suppress(KeyboardInterrupt):
        control_c(x, goal, access)


def generators(x: Tensor, goal, access) -> None:
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002


@dataclasses.dataclass(frozen=True)
class Hostile:
    """An attack that does what a function of this module does, and then follows PGD from the images that it was given."""

    act: str = "leave"

    norms: ClassVar[frozenset[str]] = frozenset({"linf"})
    minimal_norm: ClassVar[bool] = False
    knowledge: ClassVar[type] = WhiteBox
    targeted: ClassVar[bool] = False

    def __call__(self, access, x, goal, threat, rng):
        proposed = PGD(steps=3)(access, x.clone(), goal, threat, rng)
        globals()[self.act](x, goal, access)
        return proposed


@pytest.fixture
def hostile(monkeypatch):
    monkeypatch.setitem(registry.attacks.own, "hostile", f"{__name__}:Hostile")
    monkeypatch.setitem(sys.modules, __name__, sys.modules.get(__name__) or _this_module())


def _this_module():
    import types

    module = types.ModuleType(__name__)
    module.__file__ = __file__
    module.__dict__.update(globals())
    return module


def attacked(act: str, **settings):
    """Images in blocks of ten, attacked by the hostile attack, then by others."""
    x, y = problem(normalised)
    attack = f"hostile(act='{act}'),pgd(steps=5),fmn(steps=5)"
    return evaluate(Net(), x, y, epsilon=EPSILON, attack=attack, batch=10, **settings)


def rows(result) -> dict[str, tuple[str, str]]:
    return {record.attack["name"]: (record.status, record.reason) for record, _ in result.cells}


def others(result) -> dict[str, object]:
    return {name: found for name, found in numbers(result)["by_attack"].items() if not name.startswith("hostile")}


@pytest.mark.parametrize("act", ["labels", "images", "indices", "weights", "generators"])
def test_an_attack_that_writes_into_what_it_is_given_bends_nothing(act, hostile):
    before = torch.get_rng_state()
    quiet, found = attacked("leave"), attacked(act)
    assert found.complete
    assert rows(found)["hostile"] == ("ok", "")
    assert others(found) == others(quiet)
    assert list(numbers(found)["by_attack"].values()) == list(numbers(quiet)["by_attack"].values())
    assert found.clean == quiet.clean
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("act", "told"),
    {
        "default_dtype": "default dtype torch.float32 -> torch.float64",
        "gradient_mode": "gradient mode True -> False",
        "working_directory": " -> /",
        "threads": "number of threads 1 -> 3",
    }.items(),
    ids=lambda value: value.strip(),
)
def test_a_change_of_global_state_is_put_back_and_is_an_error_row(act, told, hostile, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    quiet, state = attacked("leave"), (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads())
    found = attacked(act, out="results")
    assert (torch.get_default_dtype(), torch.is_grad_enabled(), torch.get_num_threads()) == state
    assert Path.cwd() == tmp_path
    status, reason = rows(found)["hostile"]
    assert status == "error"
    assert told in reason
    assert not found.complete
    assert others(found) == others(quiet)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "results"]
    assert (tmp_path / "results" / "leaderboard.md").is_file()


@pytest.mark.parametrize(
    ("act", "told"),
    [("exit_politely", "SystemExit: 0"), ("interrupt", "KeyboardInterrupt"), ("end_a_generator", "GeneratorExit")],
)
def test_an_attack_that_ends_the_program_is_an_error_row(act, told, hostile):
    found = attacked(act)
    assert not found.interrupted
    assert found.exit_code == 1
    assert rows(found)["hostile"][0] == "error"
    assert told in rows(found)["hostile"][1]
    assert others(found) == others(attacked("leave"))


@pytest.mark.parametrize("act", ["control_c", "swallow_control_c"])
def test_a_real_interrupt_still_ends_the_run(act, hostile):
    handler = signal.getsignal(signal.SIGINT)
    found = attacked(act)
    assert found.interrupted
    assert "hostile" not in rows(found)
    assert signal.getsignal(signal.SIGINT) is handler


class Leaves(Net):
    """A model that ends the program at images that no clean image is like."""

    def forward(self, x: Tensor) -> Tensor:
        if float(x.detach().min()) < 0.34:
            raise SystemExit(0)
        return super().forward(x)


def test_a_model_that_ends_the_program_under_attack_is_an_error_row():
    x, y = problem(normalised)
    found = evaluate(Leaves(), x, y, epsilon=EPSILON, attack="pgd(steps=5),fmn(steps=5)", batch=N)
    assert not found.complete
    assert found.exit_code == 1
    assert all(status == "error" and "SystemExit" in reason for status, reason in rows(found).values())
    with pytest.raises(ValueError, match="got SystemExit"):
        evaluate(Leaves(), x - 0.1, y, epsilon=EPSILON, attack="pgd(steps=5)")


class Careless(Net):
    def forward(self, x: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return super().forward(x)


def test_a_model_that_changes_global_state_is_refused():
    x, y = problem(normalised)
    with pytest.raises(ValueError, match=r"The model's forward.*default dtype torch\.float32 -> torch\.float64"):
        evaluate(Careless(), x, y, epsilon=EPSILON)
    assert torch.get_default_dtype() == torch.float32


# --- what lies in the store


CHANGES = {
    "24 of 24 outside": lambda x: 1 - x,
    "worst distance 2": lambda x: x + 2,
    "1 of 24 outside": lambda x: torch.where((torch.arange(24) == 3).view(-1, 1, 1, 1), torch.nan, x),
}
"""Texts of errors, and what is done to the images of a craft so that they occur."""


def test_a_craft_that_was_changed_is_no_success_and_is_crafted_again(settings):
    """Between crafting and scoring the images are replaced by others, which would fool the model far from the ball."""
    settings |= {"defense": "none", "attack": "pgd(steps=3)", "matrix": "white-box", "epochs": 1}
    plan = make_plan(make_config(**settings))
    (cell,) = plan.cells
    assert run_plan(plan).failures == {}
    record, examples, *_ = plan.store.load(cell)
    (craft_key,) = record.details["crafts"]
    place = artefact("craft", craft_key, plan.config.out)
    for told, change in CHANGES.items():
        found = read_craft(place)
        craft_task._save(place, dataclasses.replace(found, x_adv=change(found.x_adv)))
        shutil.rmtree(artefact("score", cell, plan.config.out))
        reason = run_plan(plan).failures[cell]
        assert told in reason
        assert f"{place} has been changed" in reason
        assert plan.store.status(cell) == "error"
        assert run_plan(plan).failures == {}, "the same command crafts again"
        again = plan.store.load(cell)[1]
        np.testing.assert_array_equal(again.report_correct, examples.report_correct)
        np.testing.assert_array_equal(again.distance_linf, examples.distance_linf)


# --- from the command line

NETS = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, writes):
        super().__init__(nn.Flatten(), nn.Linear(784, 10))
        self.writes = writes

    def forward(self, x):
        if self.writes:
            x.data.mul_(0.5)
            x.sub_(0.3)
        else:
            x = x + (0.5 * x - x).detach() - 0.3
        return super().forward(x)

def writer():
    torch.set_num_threads(2)
    return Net(True)

def twin():
    return Net(False)
"""

PLUGIN = """
import os
from dataclasses import dataclass

from advbench.attacks.access import WhiteBox


@dataclass(frozen=True)
class Hostile:
    act: str = "leave"
    norms = frozenset({"linf"})
    minimal_norm = False
    knowledge = WhiteBox
    targeted = False

    def __call__(self, access, x, goal, threat, rng):
        if self.act == "labels":
            goal.y.add_(1)
        if self.act == "exit":
            raise SystemExit(0)
        if self.act == "interrupt":
            raise KeyboardInterrupt
        if self.act == "folder":
            os.chdir("/")
        return x.clone()
"""


def command(folder: Path, target: str, attack: str, *arguments: str):
    found = folder / f"{target}.json"
    asked = [f"net.py:{target}", "--dataset=digits", f"--attack={attack}", "--n-examples=24", "--device=cpu"]
    asked += ["--epsilon=0.15", "--weights=model.pt", f"--json={found}", f"--out=out-{target}", *arguments]
    ended = subprocess.run(
        [sys.executable, "-m", "advbench", "evaluate", *asked],
        capture_output=True,
        text=True,
        cwd=folder,
        env=os.environ | {"NO_COLOR": "1", "COLUMNS": "120", "PYTHONPATH": str(folder)},
        timeout=300,
    )
    return ended, json.loads(found.read_text()) if found.is_file() else None


@pytest.fixture
def folder(tmp_path):
    """A user's folder, with two models and a plug-in beside them."""
    (tmp_path / "net.py").write_text(NETS)
    train = registry.load_dataset("digits", None).train
    pixels = torch.cat((0.5 * train.x.flatten(1) - 0.3, torch.ones(len(train), 1)), dim=1)
    wanted = nn.functional.one_hot(train.y, 10).to(pixels.dtype)
    solved = torch.linalg.solve(pixels.T @ pixels + torch.eye(785), pixels.T @ wanted).T
    torch.save({"1.weight": solved[:, :-1].contiguous(), "1.bias": solved[:, -1].contiguous()}, tmp_path / "model.pt")
    (tmp_path / "hostile_plugin.py").write_text(PLUGIN)
    information = tmp_path / "hostile_plugin-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: hostile-plugin\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[advbench.attacks]\nhostile = hostile_plugin:Hostile\n")
    return tmp_path


def test_hostile_code_bends_no_number_of_the_command(folder):
    """The model of one run writes into its input, and attacks in its workers do their worst; the other is the twin alone."""
    kind = "pgd(steps=3),fmn(steps=3)"
    acts = ",".join(f"hostile(act='{act}')" for act in ("labels", "exit", "interrupt", "folder"))
    ended, found = command(folder, "writer", f"{acts},{kind}", "--jobs=2")
    twin, expected = command(folder, "twin", kind, "--jobs=1")
    assert twin.returncode == 0, twin.stderr
    assert ended.returncode == 1, ended.stderr
    assert "Traceback" not in ended.stderr
    status = {attack["label"]: attack["status"] for attack in found["attacks"]}
    assert status["hostile(act='labels')"] == "ok"
    assert {status[f"hostile(act='{act}')"] for act in ("exit", "interrupt", "folder")} == {"error"}
    assert found["clean"] == expected["clean"]
    for attack in ("pgd(steps=3)", "fmn(steps=3)"):
        assert found["examples"]["by_attack"][attack] == expected["examples"]["by_attack"][attack]
    assert found["examples"]["distance"] == expected["examples"]["distance"]
    assert 0 < expected["robust"]["value"] < expected["clean"]["value"]
    assert (folder / "out-writer" / "leaderboard.md").is_file()
