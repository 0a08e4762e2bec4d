"""A live model attacked in one line: numbers against closed forms, what is refused, and what is left behind."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.results.statistics import wilson
from advbench.user_models.states import StateError
from advbench.user_models.target import evaluate, plan_target

N, EPSILON = 24, 0.03


class Linear(nn.Module):
    """Two logits, the second of which is w.x + b, so that the exact distances are known."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.weight = nn.Parameter(torch.randn(12, generator=generator))
        self.drop = nn.Dropout(0.5)
        self.register_buffer("calls", torch.zeros(()))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.calls += 1
        x = self.drop(x + self.noise * torch.randn_like(x) if self.noise else x)
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack((torch.zeros_like(score), score), dim=1)


def problem(noise: float = 0.0) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """The model, images far from the borders, labels (the model's, two of them wrong), and the exact linf distances."""
    model = Linear(noise)
    x = 0.35 + 0.3 * torch.rand(N, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        score = (x.flatten(1) - 0.5) @ model.weight
    y = (score > 0).long()
    y[[0, 7]] = 1 - y[[0, 7]]
    return model, x, y, score.abs() / model.weight.detach().abs().sum()


@pytest.fixture(autouse=True)
def _own_cache(cache):
    """Compute batches are remembered in a cache of the test's own."""


def test_robust_accuracy_is_that_of_the_closed_form():
    model, x, y, distance = problem()
    result = evaluate(model, x, y, epsilon=EPSILON, attack="pgd(steps=10)", batch=N)
    right = np.ones(N, dtype=bool)
    right[[0, 7]] = False
    assert (distance - EPSILON).abs().min() > 5e-4, "no image lies on the edge"
    robust = right & (distance.numpy() > EPSILON)
    assert 0 < robust.sum() < right.sum()
    assert result.complete
    assert result.exit_code == 0
    assert result.clean == wilson(22, N)
    assert result.robust == wilson(int(robust.sum()), N)
    summary = result.summary()
    assert summary["examples"]["robust"] == robust.astype(float).tolist()
    assert summary["examples"]["index"] == list(range(N))
    found = np.array(summary["examples"]["distance"], dtype=float)
    np.testing.assert_allclose(found[right], distance.numpy()[right], rtol=0.02)


def test_the_result_shows_itself_and_is_json():
    model, x, y, _ = problem()
    model.train()
    result = evaluate(model, x, y, epsilon="3/100", attack=["pgd(steps=3)"], batch=N, name="mine <b>")
    summary = json.loads(result.to_json())
    assert summary["threat"] == {"norm": "linf", "epsilon": 0.03, "box": [0.0, 1.0]}
    assert [attack["label"] for attack in summary["attacks"]] == ["pgd(steps=3)", "fmn"]
    assert summary["attacks"][0]["arguments"]["steps"] == 3
    assert summary["attacks"][0]["forwards"] > 0
    assert summary["seconds"] > 0
    assert summary["versions"]["torch"] == torch.__version__
    assert isinstance(summary["flags"], list)
    assert summary["robust"]["complete"] is True
    assert set(summary["examples"]["by_attack"]) == {"pgd(steps=3)", "fmn"}
    page = result._repr_html_()
    assert "mine &lt;b&gt;" in page
    assert "<table" in page
    assert "worst case" in str(result)
    assert list(result.frame["attack"]) == ["pgd(steps=3)", "fmn", "worst case"]


def test_the_public_name_is_lazy_and_the_same():
    assert advbench.evaluate is evaluate
    assert "evaluate" in advbench.__all__


@pytest.mark.parametrize("broken", [False, True])
def test_the_model_is_left_as_it_came(broken):
    model, x, y, _ = problem()
    model.train()
    model.drop.eval()
    model.weight.grad = torch.ones_like(model.weight)
    model.weight.requires_grad_(not broken)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = x.clone()
    if broken:
        with pytest.raises(ValueError, match="finite logits"):
            evaluate(nn.Sequential(model, Infinite()), x, y, epsilon=EPSILON)
    else:
        evaluate(model, x, y, epsilon=EPSILON, attack="fgsm", batch=N)
    assert (model.training, model.drop.training) == (True, False)
    assert torch.equal(model.weight.grad, torch.ones_like(model.weight))
    assert model.weight.requires_grad is not broken
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(x, images)


class Infinite(nn.Module):
    def forward(self, logits: Tensor) -> Tensor:
        return logits / 0


def test_tensors_and_arrays_give_the_same_result():
    model, x, y, _ = problem()
    settings = {"epsilon": EPSILON, "attack": "fgsm", "batch": N}
    one = evaluate(model, x, y, **settings).summary()["examples"]
    other = evaluate(model, x.numpy().astype(np.float64), y.numpy().astype(np.int32), **settings).summary()["examples"]
    assert one == other


def test_a_normalisation_stands_inside_the_threat():
    """Epsilon is in pixel units: the model with mean and std is another one, with distances std times as large."""
    model, x, y, _ = problem()
    mean, std = (0.45, 0.5, 0.55), (0.2, 0.25, 0.3)
    inner = nn.Sequential(model)
    found = evaluate(inner, x, y, epsilon=EPSILON, attack="fmn(steps=60)", mean=mean, std=std, batch=N).summary()
    scale = torch.tensor(std).repeat_interleave(4)
    shifted = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    with torch.no_grad():
        score = (shifted.flatten(1) - 0.5) @ model.weight
    expected = score.abs() / (model.weight.detach() / scale).abs().sum()
    right = (score > 0).long() == y
    near = right & (expected < 0.3)
    assert near.sum() > 3
    distances = torch.tensor(np.array(found["examples"]["distance"], dtype=float))
    torch.testing.assert_close(distances[near].float(), expected[near], rtol=0.03, atol=0)


def refused(match="Expected", **changes):
    model, x, y, _ = problem()
    given = {"model": model, "x": x, "y": y, "epsilon": EPSILON, "attack": "fgsm"} | changes
    with pytest.raises(ValueError, match=match) as found:
        evaluate(given.pop("model"), given.pop("x"), given.pop("y"), **given)
    assert "\n" not in str(found.value)
    return str(found.value)


def test_images_and_labels_that_do_not_fit_are_refused():
    _, x, y, _ = problem()
    nan = x.clone()
    nan[3, 0, 0, 0] = math.nan
    assert "undo the normalisation" in refused(x=255 * x)
    assert "undo the normalisation" in refused(x=x - 0.5)
    assert "got NaN in 1 images" in refused(x=nan)
    assert "divide bytes by 255" in refused(x=(255 * x).to(torch.uint8))
    assert "(n, c, h, w), got shape (24, 12)" in refused(x=x.flatten(1))
    assert "(n, c, h, w), got shape (0, 3, 2, 2)" in refused(x=x[:0], y=y[:0])
    assert "whole numbers (24,)" in refused(y=y[:5])
    assert "whole numbers (24,)" in refused(y=y.float())
    assert "`y` >= 0" in refused(y=y - 1)
    assert "logits for 8 classes, got 2" in refused(y=y + 6)
    assert "`epsilon` > 0" in refused(epsilon=-1)
    assert "Expected one `epsilon`" in refused(epsilon=[0.1, 0.2])
    assert "usual epsilon in linf" in refused_epsilon()
    assert "an nn.Module, got function" in refused(model=refused)


def refused_epsilon():
    model, x, y, _ = problem()
    with pytest.raises(ValueError, match="epsilon") as found:
        evaluate(model, x, y)
    return str(found.value)


class Labels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(dim=1).long()


class Batched(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)[:, :2]
        return flat - flat.mean(dim=0)


class Rounded(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (8 * x.detach().flatten(1)[:, :2]).round()


def test_models_that_are_no_image_classifiers_are_refused():
    assert "return logits, not labels" in refused(model=Labels())
    assert "do not depend on the other images in the batch" in refused(model=Batched())
    assert "takes images (16, 3, 2, 2) torch.float32, got RuntimeError" in refused(model=nn.Linear(5, 2))
    assert "name attacks that need none" in refused(model=Rounded(), attack=None)


def test_a_model_without_gradients_is_attacked_by_scores_where_that_is_asked_for():
    _, x, y, _ = problem()
    result = evaluate(Rounded(), x, y, epsilon=EPSILON, attack="square(queries=20)")
    assert [record.attack["label"] for record, _ in result.cells] == ["square(queries=20)"]
    assert result.complete


def test_randomness_must_be_declared():
    assert "--stochastic" in refused(model=Linear(noise=0.05), match="The model is not deterministic")
    own = nn.Sequential(Generated(), Linear())
    assert "generators" in refused(model=own, stochastic=True)


class Generated(nn.Module):
    """Draws from a generator of its own, which nobody can seed."""

    def __init__(self) -> None:
        super().__init__()
        self.generator = torch.Generator().manual_seed(0)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=self.generator)


def test_a_stochastic_model_is_scored_twice_and_repeats_at_any_batch():
    model, x, y, _ = problem(noise=0.05)
    settings = {"epsilon": EPSILON, "attack": "pgd(steps=3),fmn(steps=5)", "stochastic": True, "draws": 2}
    one, other = (evaluate(model, x, y, batch=batch, **settings) for batch in (N, 5))
    assert one.outcomes[0][1].draws == 10
    first, second = (result.summary()["examples"] for result in (one, other))
    assert first["clean"] == second["clean"]
    differ = np.abs(np.array(first["by_attack"]["pgd(steps=3)"]) - np.array(second["by_attack"]["pgd(steps=3)"]))
    assert (differ > 0).sum() <= 1  # rounding in float32, by the batch
    assert 0 < np.mean(first["clean"]) < 1
    again = evaluate(model, x, y, batch=N, **settings).summary()["examples"]
    assert again == first


def test_an_attack_that_fails_is_a_row_and_never_robust(tmp_path):
    model, x, y, _ = problem()
    attacks, out = "fgsm,mi-fgsm(steps=99)", tmp_path / "out"
    result = evaluate(FailsLater(model), x, y, epsilon=EPSILON, attack=attacks, batch=N, out=out)
    assert not result.complete
    assert result.exit_code == 1
    reasons = {record.attack["label"]: record.reason for record, examples in result.cells if examples is None}
    assert "enough" in reasons["mi-fgsm(steps=99)"]
    assert "worst case, incomplete" in str(result)
    summary = result.summary()
    assert summary["robust"] is None or summary["robust"]["complete"] is False
    assert (tmp_path / "out" / "leaderboard.md").is_file()


class FailsLater(nn.Module):
    """Breaks in the middle of every long attack."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.asked = inner, 0

    def forward(self, x: Tensor) -> Tensor:
        self.asked = self.asked + 1 if torch.is_grad_enabled() else 0
        if self.asked > 60:
            raise RuntimeError("enough")
        return self.inner(x)


def test_an_attack_that_is_calibrated_asks_for_held_out_images():
    assert "Expected `held_out`" in refused(attack="worst-case(attacks=('fgsm','pgd(steps=3)'))")
    model, x, y, _ = problem()
    result = evaluate(
        model, x, y, epsilon=EPSILON, attack="worst-case(attacks=('fgsm','pgd(steps=3)'))", held_out=(x, y), batch=N
    )
    assert result.complete


def test_an_attack_that_can_do_without_held_out_images_takes_them_where_there_are_some():
    model, x, y, _ = problem()
    spent = []
    for held_out in (None, (0.97 * x, y)):
        result = evaluate(model, x, y, epsilon=EPSILON, attack="hop-skip-jump(queries=150)", held_out=held_out, batch=N)
        assert result.complete
        assert result.robust.value < result.clean.value
        ((record, _),) = result.outcomes
        spent.append(record.counts["queries"])
    assert spent[0] != spent[1]


def test_nothing_is_left_behind_without_a_folder(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model, x, y, _ = problem()
    evaluate(model, x, y, epsilon=EPSILON, attack="fgsm", batch=N)
    assert not list(cache.rglob("*.safetensors"))
    assert {path.name for path in tmp_path.iterdir()} <= {"cache"}


class Saturated(nn.Module):
    """The same answers, so far apart that the cross-entropy has no gradient left."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return 1e5 * self.inner(x)


def test_a_model_that_hides_its_gradients_is_flagged_and_its_number_is_an_upper_bound():
    model, x, y, _ = problem()
    found = evaluate(Saturated(model), x, y, epsilon=EPSILON, attack="pgd(steps=5)", batch=N)
    summary = found.summary()
    assert summary["robust"]["upper_bound"] is True
    assert any("gradient" in flag["finding"] for flag in summary["flags"])
    assert "worst case, an upper bound" in str(found)
    assert "flag: " in str(found)
    honest = evaluate(model, x, y, epsilon=EPSILON, attack="pgd(steps=10)", batch=N)
    assert honest.flags == []
    assert honest.summary()["robust"]["upper_bound"] is False


class Mapped(nn.Module):
    """A map of the pixels before the model."""

    def __init__(self, inner, pixels):
        super().__init__()
        self.inner, self.pixels = inner, pixels

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.pixels(x))


def black(inner: nn.Module) -> tuple[Tensor, Tensor]:
    """Images with a black pixel each, and the model's labels."""
    _, x, _, _ = problem()
    x[:, 0, 0, 0] = 0
    with torch.no_grad():
        return x, inner.eval()(x).argmax(dim=1)


@pytest.mark.parametrize("pixels", [lambda x: x.sqrt().square(), lambda x: x ** (1 / 2.2)], ids=["nan", "infinite"])
def test_gradients_that_are_not_finite_are_flagged_by_name(pixels):
    model = Mapped(Linear(), pixels)
    x, y = black(model)
    found = evaluate(model, x, y, epsilon=EPSILON, attack="pgd(steps=10)", batch=N)
    (flag,) = [flag for flag in found.flags if flag["name"] == "non-finite gradients"]
    assert flag["n"] == N
    assert flag["measured"].startswith(f"on {N} of {N} clean-correct images (100.0%)")
    assert "square" in flag["remedy"]
    assert "hop-skip-jump" in flag["remedy"]
    assert found.summary()["robust"]["upper_bound"] is True
    assert "NaN or infinite" in str(found)


def test_the_same_model_with_finite_gradients_is_not_flagged():
    model = Linear()
    x, y = black(model)
    assert evaluate(model, x, y, epsilon=EPSILON, attack="pgd(steps=10)", batch=N).flags == []


def test_logits_that_are_no_numbers_are_refused_or_an_error_row():
    model = Linear()
    x, y = black(model)
    with pytest.raises(ValueError, match="finite logits"):
        evaluate(Mapped(model, lambda x: x / x.sign()), x, y, epsilon=EPSILON, attack="fgsm")
    later = Mapped(model, lambda x: (x - 1e-6).sqrt())  # of grey images, until a step has reached black
    x = x.clamp(min=0.02)
    found = evaluate(later, x, later(x).argmax(dim=1), epsilon=EPSILON, attack="fgsm", batch=N)
    assert not found.complete
    ((record, _),) = [cell for cell in found.cells if cell[1] is None]
    assert "finite logits" in record.reason


# --- targets by name

NET = """
import torch
from torch import nn

def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))

def noisy():
    class Noisy(nn.Sequential):
        def forward(self, x):
            return super().forward(x + 0.1 * torch.randn_like(x))
    return Noisy(nn.Flatten(), nn.Linear(784, 10))
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def plan(target="net.py:make", **settings):
    given = {"dataset": "digits", "attack": "fgsm", "n_examples": 16, "batch": 16, "device": "cpu"} | settings
    return plan_target(target, **given)


def test_the_plan_of_a_target_has_it_alone_in_the_white_box_matrix(folder):
    found = plan()
    assert {task.kind for task in found.tasks.values()} == {"train", "clean", "diagnose", "craft", "score"}
    (target,) = {task.facts.target.label for task in found.tasks.values() if task.kind == "score"}
    assert target == "net.py:make"
    assert sorted(str(found.tasks[key].facts.attack.label) for key in found.cells) == ["fgsm", "fmn"]


def test_the_same_target_has_the_same_keys_and_other_weights_or_code_others(folder):
    first = set(plan().cells)
    assert set(plan().cells) == first
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).state_dict(), "model.pt")
    weighted = plan(weights="model.pt")
    assert not set(weighted.cells) & first
    assert "net.py:make (model.pt)" in {str(spec) for spec in weighted.config.defense}
    (folder / "net.py").write_text(NET + "\n# edited\n")
    assert not set(plan().cells) & first


def test_what_does_not_fit_a_target_is_refused(folder):
    with pytest.raises(ValueError, match="--stochastic"):
        plan("net.py:noisy")
    assert plan("net.py:noisy", stochastic=True).tasks
    with pytest.raises(StateError, match=r"got none at gone\.pt"):
        plan(weights="gone.pt")
    with pytest.raises(ValueError, match="`mean` as numbers"):
        plan(mean="a,b", std="1,1")
    with pytest.raises(ValueError, match="--weights for torchvision/resnet18"):
        plan("torchvision/resnet18")
    with pytest.raises(ValueError, match="registered datasets"):
        plan(dataset="nowhere")
    with pytest.raises(ValueError, match="registered attacks"):
        plan(attack="nothing")
