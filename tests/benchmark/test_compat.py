"""Scripts written against the documentation of AutoAttack and RobustBench, with one import changed."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from advbench.compat import AutoAttack, benchmark, clean_accuracy
from advbench.compat.callables import as_module
from advbench.compat.settings import KNOWN, RAND, STANDARD, ensemble_of, settings_of
from advbench.registry import registry

N, EPSILON = 16, 0.03


class Linear(nn.Module):
    """Two logits whose difference is w.x + b: the distance of every image to the boundary is known in each norm."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(3)))
        self.noise, self.asked = noise, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked += len(x)
        x = x + self.noise * torch.randn_like(x) if self.noise else x
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack((torch.zeros_like(score), score), dim=1)


def images() -> tuple[Tensor, Tensor, Tensor]:
    """Images far from the borders, their labels (one is wrong), and their exact linf distances."""
    model = Linear()
    x = 0.35 + 0.3 * torch.rand(N, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    score = (x.flatten(1) - 0.5) @ model.weight.detach()
    y = (score > 0).long()
    y[3] = 1 - y[3]
    distance = score.abs() / model.weight.detach().abs().sum()
    assert (distance - EPSILON).abs().min() > 5e-4, "no image lies on the edge"
    return x, y, distance


def right(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    with torch.no_grad():
        return model(x).argmax(dim=1) == y


@pytest.fixture(autouse=True)
def _own_cache(cache):
    """Compute batches are remembered in a cache of the test's own."""


AUTOATTACK = """
from advbench.compat import AutoAttack

adversary = AutoAttack(forward_pass, norm="Linf", eps=epsilon, version="standard", device="cpu")
adversary.square.n_queries = 200
x_adv, y_adv = adversary.run_standard_evaluation(images, labels, bs=batch_size, return_labels=True)

adversary = AutoAttack(forward_pass, norm="Linf", eps=epsilon, version="custom", attacks_to_run=["apgd-ce", "fab"])
adversary.apgd.n_restarts = 2
adversary.apgd.n_iter = 20
dict_adv = adversary.run_standard_evaluation_individual(images, labels, bs=batch_size)

adversary = AutoAttack(forward_pass, norm="Linf", eps=epsilon, verbose=False)
adversary.attacks_to_run = ["apgd-ce"]
quiet = adversary.run_standard_evaluation(images, labels)
"""


def test_a_script_for_autoattack_finds_what_the_closed_form_says(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("script.py").write_text(AUTOATTACK)
    x, y, distance = images()
    model = Linear()
    clean = right(model, x, y)
    given = {"images": x, "labels": y, "epsilon": EPSILON, "batch_size": 8, "forward_pass": lambda z: model(z)}
    found = runpy.run_path("script.py", given)
    for x_adv in (found["x_adv"], found["quiet"], *found["dict_adv"].values()):
        assert (x_adv - x).abs().max() <= EPSILON * 1.00001
        assert torch.equal(right(model, x_adv, y), clean & (distance > EPSILON))
        unchanged = (x_adv == x).flatten(1).all(dim=1)
        assert torch.equal(unchanged, ~clean | (distance > EPSILON)), "those that withstand or were wrong come back"
    assert torch.equal(found["y_adv"], model(found["x_adv"]).argmax(dim=1))
    assert list(found["dict_adv"]) == ["apgd-ce", "fab"]
    assert capsys.readouterr().out.count("clean accuracy 93.8%") == 2, "the third is not verbose"


def test_the_standard_version_is_the_registered_ensemble_until_something_is_set():
    for norm in ("Linf", "L2", "L1"):
        assert ensemble_of(STANDARD, settings_of("standard", norm), norm).text == "autoattack"
    assert ensemble_of(RAND, settings_of("rand", "L2"), "L2").text == "autoattack-rand"
    fewer = settings_of("standard", "Linf")
    fewer.apgd_targeted.n_target_classes = 3
    text = ensemble_of(STANDARD, fewer, "Linf").text
    made = registry.attacks.create(ensemble_of(STANDARD, fewer, "Linf"))
    assert [type(one).__name__ for one in made.components] == ["APGD", "APGDT", "FABT", "Square"]
    assert [one.targets for one in made.components[1:3]] == [3, 9]
    assert made.components[3].rescale is False
    assert "order='given'" in text
    sparse = settings_of("standard", "L1")
    assert (sparse.apgd.n_restarts, sparse.apgd_targeted.n_target_classes) == (5, 5)


def test_every_attack_that_may_be_named_exists_in_its_own_setting():
    settings = settings_of("custom", "Linf")
    for name in KNOWN:
        spec = settings.spec(name)
        assert spec.name == name
        registry.attacks.create(spec)


def test_finished_work_is_kept_and_counts_for_the_same_images_alone(tmp_path):
    x, y, _ = images()
    model = Linear()
    asked = []
    for state, labels in (("state", y), ("state", y), ("state", 1 - y)):
        adversary = AutoAttack(model, eps=EPSILON, version="custom", attacks_to_run=["apgd-ce"], verbose=False)
        model.asked = 0
        x_adv = adversary.run_standard_evaluation(x, labels, bs=8, state_path=tmp_path / state)
        asked.append(model.asked)
        assert (x_adv - x).abs().max() <= EPSILON * 1.00001
    assert asked[1] < asked[0] / 2, "the attack did not run again"
    assert asked[2] > asked[1], "of other labels it did"
    (tmp_path / "file").write_text("{}")
    with pytest.raises(ValueError, match="a folder of advbench's, or nothing yet, got a file"):
        adversary.run_standard_evaluation(x, y, state_path=tmp_path / "file")


def test_random_models_need_the_version_for_them_and_other_weights_are_other_models(tmp_path):
    x, y, _ = images()
    with pytest.raises(ValueError, match="not deterministic"):
        AutoAttack(Linear(0.02), eps=EPSILON, verbose=False).run_standard_evaluation(x, y)
    adversary = AutoAttack(Linear(0.005), eps=0.1, version="rand", verbose=False)
    adversary.apgd.n_iter, adversary.apgd.eot_iter = 5, 2
    x_adv = adversary.run_standard_evaluation(x, y, bs=N, state_path=tmp_path)
    fooled = ~right(Linear(), x_adv, y)
    assert fooled.sum() >= N - 2
    assert adversary.result is not None
    assert adversary.result.summary()["target"]["stochastic"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"is_tf_model": True}, "Expected a PyTorch model"),
        ({"norm": "linf"}, "Linf, L2, L1, got 'linf'"),
        ({"version": "plus"}, "which starts FAB five times"),
        ({"version": "best"}, "standard, rand, custom or auto, got 'best'"),
        ({"attacks_to_run": ["fab"]}, "version='custom' with `attacks_to_run`"),
    ],
)
def test_what_cannot_be_honoured_is_one_line(arguments, said):
    with pytest.raises(ValueError, match=said) as error:
        AutoAttack(Linear(), **arguments)
    assert "\n" not in str(error.value)


def test_settings_that_do_not_exist_or_fit_are_refused():
    adversary = AutoAttack(Linear(), version="custom", attacks_to_run=["pgd"])
    with pytest.raises(AttributeError, match="n_iter, n_restarts, eot_iter, which advbench can honour, got 'loss'"):
        adversary.apgd.loss = "ce"
    with pytest.raises(ValueError, match="`n_queries` to be a whole number >= 1, got 0"):
        adversary.square.n_queries = 0
    x, y, _ = images()
    with pytest.raises(ValueError, match=r"from apgd-ce, .*got \['pgd'\]"):
        adversary.run_standard_evaluation(x, y)
    adversary.attacks_to_run = ["fab"]
    adversary.fab.n_restarts = 2
    with pytest.raises(ValueError, match="which has one start in advbench, got 2"):
        adversary.run_standard_evaluation(x, y)


class Holder:
    """An object with a model, called with images."""

    def __init__(self) -> None:
        self.model = Linear()

    def __call__(self, x: Tensor) -> Tensor:
        return self.model(x)


def test_functions_bring_the_modules_that_they_call():
    model, holder = Linear(), Holder()
    assert as_module(model.forward) is model
    assert list(as_module(lambda x: model(x)).parameters()) == [model.weight]
    assert list(as_module(holder).parameters()) == [holder.model.weight]
    assert not list(as_module(lambda x: x.flatten(1)).parameters())
    with pytest.raises(ValueError, match="got int"):
        as_module(3)


ROBUSTBENCH = """
from advbench.compat import benchmark

clean_acc, robust_acc = benchmark(
    model, n_examples=12, dataset=dataset, threat_model="Linf", eps=epsilon, to_disk=True, model_name="Mine2026"
)
"""


def test_a_script_for_robustbench_scores_the_first_images_and_writes_the_info(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y, distance = images()
    arrays = {f"{name}_{part}": value.numpy() for part in ("train", "test") for name, value in (("x", x), ("y", y))}
    np.savez("mine.npz", **arrays)
    Path("script.py").write_text(ROBUSTBENCH)
    model = Linear()
    found = runpy.run_path("script.py", {"model": model, "epsilon": EPSILON, "dataset": "npz:mine.npz"})
    clean = right(model, x, y)[:12]
    assert found["clean_acc"] == pytest.approx(float(clean.double().mean()))
    assert found["robust_acc"] == pytest.approx(float((clean & (distance > EPSILON)[:12]).double().mean()))
    assert 0 < found["robust_acc"] < found["clean_acc"]
    (place,) = Path("model_info").rglob("*.json")
    assert place.name == "Mine2026.json"
    info = json.loads(place.read_text())
    assert info["autoattack_acc"] == f"{100 * found['robust_acc']:.2f}"
    assert (info["name"], info["unreliable"]) == ("Mine2026", False)


def test_clean_accuracy_is_the_share_that_is_right():
    x, y, _ = images()
    assert clean_accuracy(Linear(), x, y) == pytest.approx((N - 1) / N)
    assert AutoAttack(Linear()).clean_accuracy(x, y) == pytest.approx((N - 1) / N)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"threat_model": "corruptions"}, "Linf, L2, L1, got 'corruptions'"),
        ({"dataset": "imagenet"}, "images of yours in place of imagenet"),
        ({"preprocessing": "Res256Crop224"}, "put it into the model"),
        ({"to_disk": True}, "Expected a `model_name`"),
        ({"to_disk": True, "model_name": "../mine"}, "can be the name of a file"),
        ({"dataset": "cifar11"}, "did you mean cifar10"),
    ],
)
def test_what_the_evaluation_cannot_honour_is_one_line(arguments, said):
    with pytest.raises(ValueError, match=said) as error:
        benchmark(Linear(), **arguments)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="Expected one model"):
        benchmark([Linear(), Linear()])
