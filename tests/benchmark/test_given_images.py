"""Adversarial images that somebody else has found, as an attack: `images:FILE`."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.attacks.threat import ThreatModel
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.results.store import Store
from advbench.tasks.components import Component
from advbench.user_models import given_images
from advbench.user_models.given_images import read_images

N, EPSILON = 24, 0.1


class Brightness(nn.Module):
    """Class 1 for images whose mean is above a half."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(40.0))

    def forward(self, x: Tensor) -> Tensor:
        score = self.scale * (x.flatten(1).mean(dim=1) - 0.5)
        return torch.stack((torch.zeros_like(score), score), dim=1)


@pytest.fixture
def problem(cache) -> tuple[Brightness, Tensor, Tensor]:
    """The model, dark and bright flat images 0.02 to 0.13 from its border, and their labels, the first of which is wrong."""
    away = torch.linspace(0.02, 0.13, N // 2)
    x = (0.5 + torch.cat((-away, away)))[:, None, None, None].expand(N, 1, 4, 4).clone()
    y = (x.flatten(1).mean(dim=1) > 0.5).long()
    y[0] = 1 - y[0]
    return Brightness(), x, y


def shifted(x: Tensor, by: float) -> Tensor:
    """The images moved towards the border and across it."""
    return x + by * torch.where(x < 0.5, 1.0, -1.0)


def evaluated(problem, file, out, attack="images:{}", **given):
    model, x, y = problem
    found = advbench.evaluate(
        model, x, y, epsilon=EPSILON, attack=attack.format(file), out=out, batch=5, curve=False, **given
    )
    (record,) = (record for record, _ in found.cells if record.attack["label"].startswith("images:"))
    return record, Store(out).examples(record.key) if record.status == "ok" else None


def test_they_count_where_a_fresh_pass_says_so(problem, tmp_path):
    _, x, _ = problem
    np.savez(tmp_path / "adv.npz", x_adv=shifted(x, 0.099).numpy())
    record, examples = evaluated(problem, tmp_path / "adv.npz", tmp_path / "out")
    near = (x.flatten(1).mean(dim=1) - 0.5).abs() < 0.099
    right = torch.arange(N) > 0
    assert examples.clean_correct.tolist() == right.int().tolist()
    assert examples.report_correct[1:].tolist() == (~near)[1:].int().tolist()
    assert record.source == {"label": "given images", "kind": "queries"}
    assert record.attack["family"] == "given images"
    assert not record.attack["gradients"]
    assert (record.counts["forwards"], record.counts["queries"]) == (0, 0)
    assert len(record.attack["identity"]) == 64


def test_an_image_belongs_to_its_position_and_the_others_keep_their_own(problem, tmp_path):
    _, x, _ = problem
    index = np.array([14, 3, 1])
    np.savez(tmp_path / "adv.npz", x_adv=shifted(x, 0.099)[index].numpy(), index=index)
    _, examples = evaluated(problem, tmp_path / "adv.npz", tmp_path / "out")
    broken = np.flatnonzero((examples.clean_correct == 1) & (examples.report_correct == 0))
    assert broken.tolist() == [1, 3, 14]


def test_images_outside_the_ball_are_refused_and_nothing_of_them_counts(problem, tmp_path):
    _, x, _ = problem
    moved = shifted(x, 0.099)
    moved[7] = shifted(x, 0.2)[7]
    np.savez(tmp_path / "adv.npz", x_adv=moved.numpy())
    record, _ = evaluated(problem, tmp_path / "adv.npz", tmp_path / "out")
    assert record.status == "error"
    assert "got 1 of 5 outside (worst distance 0.2, first at example 7)" in record.reason


def test_minimal_ones_count_by_their_distances(problem, tmp_path):
    _, x, _ = problem
    np.savez(tmp_path / "adv.npz", x_adv=shifted(x, 0.131).clamp(0, 1).numpy())
    record, examples = evaluated(problem, tmp_path / "adv.npz", tmp_path / "out", "images:{}(minimal=True)")
    assert record.attack["minimal_norm"]
    assert examples.distance_linf[1:] == pytest.approx(np.full(N - 1, 0.131), abs=1e-6)


def test_what_a_run_found_is_found_again_and_stands_beside_other_attacks(problem, tmp_path):
    model, x, y = problem
    advbench.evaluate(model, x, y, epsilon=EPSILON, attack="pgd(steps=20)", out=tmp_path / "one", batch=N, curve=False)
    found = advbench.adversarial_images(tmp_path / "one", "pgd(steps=20)")
    file = found.save(tmp_path / "adv.npz")
    assert dict(np.load(file))["y"].tolist() == y.tolist()
    _, examples = evaluated(problem, file, tmp_path / "two", "fgsm,images:{}")
    broken = (examples.clean_correct == 1) & (examples.report_correct == 0)
    assert broken.tolist() == found.success.tolist()
    assert 0 < broken.sum() < N - 1


def test_another_file_is_another_attack(tmp_path):
    file = tmp_path / "adv.npz"

    def component() -> Component:
        spec = Spec.parse(f"images:{file}")
        return Component.of("attacks", spec, registry.attacks.create(spec))

    np.savez(file, x_adv=np.zeros((2, 1, 4, 4), np.float32))
    first, again = component(), component()
    np.savez(file, x_adv=np.zeros((3, 1, 4, 4), np.float32))
    assert first == again != component()


def test_a_file_that_changes_after_the_plan_is_refused(problem, tmp_path):
    file = tmp_path / "adv.npz"
    _, x, _ = problem
    np.savez(file, x_adv=x.numpy())
    attack = registry.attacks.create(Spec.parse(f"images:{file}"))
    np.savez(file, x_adv=x[:3].numpy())
    given_images._held.cache_clear()
    with pytest.raises(ValueError, match="as it was when the run was planned"):
        attack(None, x, None, ThreatModel("linf", EPSILON, (0.0, 1.0)), None)


def test_forms_of_files(tmp_path):
    x = (np.random.default_rng(0).random((4, 3, 6, 5)) * 255).astype(np.uint8)
    expected = torch.from_numpy(x.astype(np.float32) / 255)
    for name, given in (("first", x), ("last", x.transpose(0, 2, 3, 1)), ("floats", expected.double().numpy())):
        np.savez(tmp_path / f"{name}.npz", x_adv=given)
        images, index = read_images(tmp_path / f"{name}.npz")
        assert torch.allclose(images, expected, atol=1e-7)
        assert images.dtype == torch.float32
        assert index.tolist() == [0, 1, 2, 3]
    np.savez(tmp_path / "grey.npz", x_adv=x[:, 0], index=np.array([9, 2, 5, 7], np.int32))
    images, index = read_images(tmp_path / "grey.npz")
    assert torch.equal(images, expected[:, :1])
    assert index.tolist() == [9, 2, 5, 7]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": np.zeros((2, 1, 4, 4))}, "it lacks x_adv"),
        ({"x_adv": np.zeros((2, 4))}, r"got shape \(2, 4\)"),
        ({"x_adv": np.zeros((0, 1, 4, 4))}, r"got shape \(0, 1, 4, 4\)"),
        ({"x_adv": np.zeros((2, 1, 4, 4), np.int64)}, "uint8 or floats .* got int64"),
        ({"x_adv": np.array([None, {}], dtype=object)}, "Expected a NumPy archive with x_adv"),
        ({"x_adv": np.zeros((2, 1, 4, 4)), "index": np.zeros(3, np.int64)}, "`index` of 2 whole numbers"),
        ({"x_adv": np.zeros((2, 1, 4, 4)), "index": np.zeros(2)}, "`index` of 2 whole numbers"),
        ({"x_adv": np.zeros((2, 1, 4, 4)), "index": np.array([1, 1])}, "each once"),
        ({"x_adv": np.zeros((2, 1, 4, 4)), "index": np.array([-1, 1])}, "from 0"),
    ],
)
def test_other_files_are_refused_in_one_line(tmp_path, arrays, message):
    np.savez(tmp_path / "adv.npz", **arrays)
    with pytest.raises(ValueError, match=message) as caught:
        registry.attacks.create(Spec.parse(f"images:{tmp_path / 'adv.npz'}"))
    assert "\n" not in str(caught.value)


def test_no_file_and_no_archive_are_refused_in_one_line(tmp_path):
    (tmp_path / "text.npz").write_text("not an archive")
    for name, message in (
        ("nowhere.npz", "No such file"),
        ("text.npz", "Expected a NumPy archive with x_adv"),
        ("", "Is a"),
    ):
        with pytest.raises(ValueError, match=message):
            registry.attacks.create(Spec.parse(f"images:{tmp_path}/{name}"))


def test_images_of_another_shape_are_refused(problem, tmp_path):
    np.savez(tmp_path / "adv.npz", x_adv=np.zeros((N, 1, 5, 5), np.float32))
    record, _ = evaluated(problem, tmp_path / "adv.npz", tmp_path / "out")
    assert record.status == "error"
    assert "Expected images of shape (1, 4, 4) in adv.npz, as the data set has, got (1, 5, 5)" in record.reason
