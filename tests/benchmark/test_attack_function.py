"""`advbench.attack`, and the adversarial images of finished runs, against closed forms and fresh passes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import advbench
from advbench.results.store import Store

N, EPSILON = 24, 0.03


class Linear(nn.Module):
    """Two logits whose difference is w.x + b."""

    def __init__(self, noise: float = 0.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(12, generator=torch.Generator().manual_seed(3)))
        self.noise = noise

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.noise * torch.randn_like(x) if self.noise else x
        score = (x.flatten(1) - 0.5) @ self.weight
        return torch.stack((torch.zeros_like(score), score), dim=1)


@pytest.fixture
def problem(cache) -> tuple[Linear, Tensor, Tensor, Tensor]:
    """The model, images, labels of which two are wrong, and the exact linf distances."""
    model = Linear()
    x = 0.35 + 0.3 * torch.rand(N, 3, 2, 2, generator=torch.Generator().manual_seed(4))
    score = ((x.flatten(1) - 0.5) @ model.weight).detach()
    y = (score > 0).long()
    y[[0, 7]] = 1 - y[[0, 7]]
    distance = score.abs() / model.weight.detach().abs().sum()
    assert (distance - EPSILON).abs().min() > 5e-4
    return model, x, y, distance


def test_success_distance_margin_and_passes_are_those_of_the_images(problem):
    model, x, y, distance = problem
    model.train()
    found = advbench.attack("pgd(steps=25)", model, x, y, epsilon=EPSILON, batch=N)
    clean = torch.ones(N, dtype=torch.bool)
    clean[[0, 7]] = False
    assert torch.equal(found.clean_correct, clean)
    assert torch.equal(found.success, clean & (distance < EPSILON))
    with torch.no_grad():
        logits = model(found.x_adv).double()
    margin = logits.gather(1, y[:, None]).squeeze(1) - logits.gather(1, 1 - y[:, None]).squeeze(1)
    torch.testing.assert_close(found.margin, margin, rtol=0, atol=1e-6)
    assert torch.equal(found.prediction, logits.argmax(dim=1))
    moved = (found.x_adv - x).abs().flatten(1).amax(dim=1).double()
    torch.testing.assert_close(found.distance[clean], moved[clean], rtol=0, atol=1e-7)
    assert found.distance[found.success].max() <= EPSILON * 1.00001
    assert found.backwards[clean & ~found.success].tolist() == [25] * int((clean & ~found.success).sum())
    assert model.training
    assert f"fools the model on {int(found.success.sum())} of 22 images" in str(found)
    assert len(found.evaluation.cells) == 1, "nothing runs but what was asked for"


def test_a_minimal_norm_attack_finds_the_distance_and_counts_within_epsilon(problem):
    model, x, y, distance = problem
    found = advbench.attack("fab(steps=20)", model, x, y, epsilon=EPSILON, batch=N)
    clean = found.clean_correct
    np.testing.assert_allclose(found.distance[clean].numpy(), distance[clean].numpy(), rtol=0.02)
    assert torch.equal(found.success, clean & (distance < EPSILON))


def test_images_come_back_in_the_type_that_they_came_in(problem):
    model, x, y, _ = problem
    found = advbench.attack("fgm", model, x.double(), y.numpy(), epsilon="3/100", batch=N)
    assert found.x_adv.dtype == torch.float64
    arrays = advbench.attack("fgm", model, x.numpy(), y.tolist(), epsilon=EPSILON, batch=N)
    assert torch.equal(arrays.x_adv, found.x_adv.float())


def test_what_fails_raises_and_a_list_is_refused(problem):
    model, x, y, _ = problem
    with pytest.raises(ValueError, match="Expected one attack"):
        advbench.attack(["fgm", "pgd"], model, x, y, epsilon=EPSILON)
    with pytest.raises(ValueError, match="did you mean"):
        advbench.attack("pdg", model, x, y, epsilon=EPSILON)

    class Rounded(Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).detach()

    with pytest.raises(advbench.AttackError, match="pgd"):
        advbench.attack("pgd", Rounded(), x, y, epsilon=EPSILON, batch=N)


def test_a_random_model_is_scored_on_fresh_draws(problem):
    _, x, y, distance = problem
    found = advbench.attack("pgd(steps=25)", Linear(0.002), x, y, epsilon=0.06, stochastic=True, draws=2, batch=N)
    far = (distance - 0.06).abs() > 0.01
    clean = found.clean_correct
    assert torch.equal(found.success[far & clean], (distance < 0.06)[far & clean])


def test_without_the_curve_only_the_named_attack_runs(problem):
    model, x, y, _ = problem
    labels = [
        [record.attack["label"] for record, _ in advbench.evaluate(
            model, x, y, epsilon=EPSILON, attack="fgm", curve=curve, batch=N
        ).cells]
        for curve in (True, False)
    ]  # fmt: skip
    assert labels == [["fgm", "fmn"], ["fgm"]]


def test_the_images_of_a_run_are_those_that_were_scored(problem, tmp_path):
    model, x, y, _ = problem
    advbench.evaluate(model, x, y, epsilon=EPSILON, attack="pgd(steps=5),fgm", out=tmp_path, batch=N)
    found = advbench.adversarial_images(tmp_path, "pgd(steps=5)")
    with torch.no_grad():
        fooled = model(found.x_adv).argmax(dim=1) != found.y
    assert torch.equal(found.success, found.clean_correct & fooled)
    assert torch.equal(found.y, y)
    assert (found.x_adv - x).abs().max() <= EPSILON * 1.00001
    with pytest.raises(
        ValueError, match=r"Expected one scored cell in .* no choice, got 3: attack fgm; attack fmn; attack pgd"
    ):
        advbench.adversarial_images(tmp_path)
    with pytest.raises(ValueError, match="with attack='cw', got 0: attack fgm"):
        advbench.adversarial_images(tmp_path, "cw")
    with pytest.raises(ValueError, match="an archive holds outcomes"):
        advbench.adversarial_images(tmp_path / "run.tar.xz")
    with pytest.raises(ValueError, match="got 0: no records there"):
        advbench.adversarial_images(tmp_path / "nowhere")


def test_of_several_surrogates_the_candidate_that_was_scored_is_found(cache, tmp_path):
    settings = {"dataset": "digits", "matrix": "white-box", "architecture": "gu2014/n100-100-10", "defense": "bit-depth"}
    advbench.run(
        **settings, attack="fgm", train_examples=300, epochs=1, n_examples=20, batch=20, device="cpu", jobs=1, out=tmp_path
    )
    found = advbench.adversarial_images(tmp_path, matrix="white-box")
    key = found.record.key
    record, examples = Store(tmp_path).read(key), Store(tmp_path).examples(key)
    assert len(record.details["crafts"]) > 1
    gallery = Store(tmp_path).gallery(key)
    rows = [found.index.tolist().index(index) for index in gallery.index.tolist()]
    np.testing.assert_array_equal(found.x_adv[rows].numpy(), gallery.adversarial)
    assert found.success.sum() == ((examples.clean_correct > 0) & (examples.report_correct == 0)).sum()
