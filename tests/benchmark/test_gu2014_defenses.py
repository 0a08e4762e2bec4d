"""Section 3 of Gu & Rigazio: images shown to another model as they are, plans, and the line on the attacker."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.rng import ExampleRNG
from advbench.config import make_config
from advbench.defenses.defended import Defended
from advbench.plan.plan import make_plan
from advbench.reproduction import studies
from advbench.reproduction.oblivious import answers, distortion, error
from advbench.reproduction.papers.gu2014 import autoencoders, noise
from advbench.reproduction.papers.gu2014.attacker import radius, verdict_of_the_attacker
from advbench.reproduction.study import FIRST_SEEDS
from advbench.zoo.data import Split


class Threshold(nn.Module):
    """Class 1 where the first pixel is above a half."""

    def forward(self, x: Tensor) -> Tensor:
        first = x.flatten(1)[:, :1]
        return torch.cat((0.5 - first, first - 0.5), dim=1)


class Coin(nn.Module):
    """Class 1 with probability one quarter, whatever it sees."""

    def forward(self, x: Tensor, rng: ExampleRNG) -> Tensor:
        heads = rng.uniform(()).unsqueeze(1) < 0.25
        return torch.where(heads, torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0]))


def split(*pixels: float, label: int = 1) -> Split:
    x = torch.tensor(pixels).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).clone()
    return Split.of(x, torch.full((len(pixels),), label))


def test_the_error_counts_every_wrong_answer():
    model = Defended(Threshold())
    assert error(model, split(0.9, 0.8, 0.1, 0.7), seed=0) == 25.0
    assert error(model, split(0.9, 0.8, 0.1, 0.7, label=0), seed=0) == 75.0


def test_the_error_of_a_stochastic_model_is_over_its_draws_and_repeats():
    model, images = Defended(Coin(), stochastic=True), split(*[0.5] * 200)
    found = error(model, images, seed=0, draws=50)
    assert found == pytest.approx(75.0, abs=4 * 100 * math.sqrt(0.25 * 0.75 / 10_000))
    assert found == error(model, images, seed=0, draws=50)
    assert answers(model, images, seed=0, draws=50).draws == 50


def test_the_distortion_is_of_the_images_that_were_right_and_are_wrong():
    clean, adversarial = split(0.9, 0.6, 0.2, 0.7), split(0.4, 0.3, 0.1, 0.6)
    assert distortion(Defended(Threshold()), clean, adversarial, seed=0) == pytest.approx((0.5 + 0.3) / 2)
    assert math.isnan(distortion(Defended(Threshold()), clean, clean, seed=0))


def trainings(study: str, name: str, architecture: bool = True) -> dict[str, list[str]]:
    """The keys of the trainings of a defense or part, by run, of a smoke study."""
    (chosen,) = studies.choose(study, "smoke")
    found = {}
    for run, settings in chosen.runs("smoke").items():
        own = {name: value for name, value in settings.items() if name != FIRST_SEEDS}
        plan = make_plan(make_config(**own, seed=0), measure=False)
        contents = [(key, task.content) for key, task in plan.tasks.items() if task.kind == "train"]
        found[run] = [key for key, content in contents if content.defense.name == name]
        assert all(
            (content.architecture is not None) == architecture for _, content in contents if content.defense.name == name
        )
    return found


def test_an_autoencoder_is_trained_once_for_all_the_nets_behind_it():
    found = trainings("gu2014.table3", "adversarial-autoencoder")
    keys = {key for each in found.values() for key in each}
    assert len(keys) == 2  # one for each net whose adversarials are restored
    assert set(found["N100-100-10, defended"]) == set(found["N200-200-10, defended"]) == keys
    assert len(found["N100-100-10, stack"]) == 1


def test_a_denoising_autoencoder_is_trained_once_for_all_nets():
    found = trainings("gu2014.table4", "dense-dae", architecture=False)
    assert len({key for each in found.values() for key in each}) == 2  # one for each deviation


def test_the_bare_nets_and_their_adversarials_are_those_of_table_1():
    first = {key for each in trainings("gu2014.table1", "weight-decay").values() for key in each}
    for table in ("table2", "table3", "table4"):
        others = {key for each in trainings(f"gu2014.{table}", "weight-decay").values() for key in each}
        assert others <= first


def test_the_line_names_what_the_adaptive_attack_breaks():
    rows = [
        ("broken", (40.0, 50.0), (99.0, 97.0), (100.0, 98.0)),
        ("still helps", (40.0, 50.0), (60.0, 62.0), (100.0, 98.0)),
        ("never helped", (97.0, 99.0), (98.0, 98.0), (100.0, 98.0)),
    ]
    claim, line = verdict_of_the_attacker("blur", rows)
    assert claim.id == "gu2014.adaptive.blur"
    assert [tuple(part.differences) for part in claim.parts] == [(59.0, 47.0), (20.0, 12.0), (1.0, -1.0)]
    assert "1 of 3: broken 45% -> 98% (bare 99%)" in line
    assert "helps" not in line.partition(":")[2]


def test_the_radius_is_the_papers_distortion():
    assert radius("N100-100-10") == pytest.approx(0.084 * 28)
    for study in (*noise.STUDIES, *autoencoders.STUDIES):
        for settings in study.runs("small").values():
            for epsilon in settings.get("epsilon", []):
                assert 2 < epsilon < 3
