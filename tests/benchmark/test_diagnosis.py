"""What the harness sees in a model's gradients, and the flags that follow, from models built to deserve them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.attacks.threat import ThreatModel
from advbench.config import make_config
from advbench.defenses.defended import Defended, Surrogate
from advbench.engine.scheduler import run_plan
from advbench.plan.plan import make_plan
from advbench.reports.cells import load
from advbench.reports.standings import ranked_boards
from advbench.tasks.diagnosis import IMAGES, diagnose
from advbench.zoo.data import Split

CPU = torch.device("cpu")
THREAT = ThreatModel("linf", 0.1)


class Linear(nn.Module):
    """A linear classifier of 16 pixels into 4 classes, whose logits are multiplied by `scale`."""

    def __init__(self, scale=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.scale = nn.Linear(16, 4), scale

    def forward(self, x):
        return self.scale * self.layer(x.flatten(1))


class Steps(Linear):
    """Pixels rounded to a few levels: a gradient that is zero everywhere."""

    def forward(self, x):
        return super().forward((8 * x).round() / 8 + 0 * x)


class Downhill(Linear):
    """The right logits with the gradient's sign turned round."""

    def forward(self, x):
        return super().forward(x.detach() + (x.detach() - x))


class Root(Linear):
    """The same function with a slope of NaN at black pixels."""

    def forward(self, x):
        return super().forward(x.sqrt().square())


class Gamma(Linear):
    """A gamma correction, whose slope at black pixels is infinite."""

    def forward(self, x):
        return super().forward(x ** (1 / 2.2))


class Noisy(Linear):
    """Noise of torch's own generator, which the model does not declare."""

    def forward(self, x):
        return super().forward(x + 0.05 * torch.randn_like(x))


@pytest.fixture(scope="module")
def split():
    x = torch.rand(120, 1, 4, 4, generator=torch.Generator().manual_seed(1))
    return Split.of(x, Linear()(x).argmax(dim=1).detach())


def look(model, split, **changes):
    return diagnose(Defended(model, **changes), split, THREAT, seed=0, draws=2, device=CPU)


def test_an_honest_model_shows_nothing(split):
    found = look(Linear(), split)
    assert found.pop("images") == IMAGES
    assert set(found) == {"zero_gradient", "zero_margin_gradient", "flat", "nonfinite_gradient", "unstable"}
    assert not any(found.values())
    assert look(Linear(), split) == {"images": IMAGES, **found}


def test_only_images_that_the_model_gets_right_are_looked_at(split):
    wrong = Split(split.x, (split.y + (torch.arange(len(split)) % 4 != 0)) % 4, split.index)
    assert look(Linear(), wrong)["images"] == 30


@pytest.mark.parametrize("model", [Linear(), Steps()])
def test_a_model_that_gets_every_image_wrong_shows_nothing(model, split):
    wrong = Split(split.x, (model(split.x).argmax(dim=1).detach() + 1) % 4, split.index)
    found = diagnose(Defended(model), wrong, THREAT, seed=0, draws=2, device=CPU)
    assert found == dict.fromkeys(look(model, split), 0)


def test_rounding_leaves_no_gradient_and_no_rising_loss(split):
    found = look(Steps(), split)
    assert (found["zero_gradient"], found["zero_margin_gradient"], found["flat"]) == (found["images"],) * 3


def test_saturation_takes_the_cross_entropys_gradient_and_leaves_the_margins(split):
    found = look(Linear(scale=1e5), split)
    assert found["zero_gradient"] > found["images"] / 2
    assert found["zero_margin_gradient"] == 0


def test_a_gradient_that_leads_downhill_is_seen(split):
    found = look(Downhill(), split)
    assert found["zero_gradient"] == 0
    assert found["flat"] > found["images"] / 2


def test_randomness_that_is_not_declared_is_seen(split):
    assert look(Noisy(), split)["unstable"] > 0


def test_a_surrogate_with_gradients_is_enough(split):
    surrogates = {"faithful": Surrogate(Steps()), "bpda": Surrogate(Linear())}
    found = look(Steps(), split, surrogates=surrogates)
    assert (found["zero_gradient"], found["flat"]) == (0, 0)


def blackened(model, x):
    """The images, every other one with a black pixel, and the model's own labels."""
    x = x.clone()
    x[::2, 0, 0, 0] = 0
    return Split.of(x, model(x).argmax(dim=1).detach())


@pytest.mark.parametrize("model", [Root(), Gamma()], ids=["nan", "infinite"])
def test_gradients_that_are_not_finite_are_counted_and_the_climb_goes_on(split, model):
    found = look(model, blackened(model, split.x))
    assert IMAGES // 2 <= found["nonfinite_gradient"] <= found["images"]
    assert (found["zero_gradient"], found["zero_margin_gradient"], found["flat"]) == (0, 0, 0)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_a_gradient_that_breaks_on_the_way_is_counted(norm):
    """Grey images, whose every gradient is finite until a step has reached black."""
    model = Root()
    x = torch.full((8, 1, 4, 4), 0.05)
    grey = Split.of(x, model(x).argmax(dim=1).detach())
    threat = ThreatModel(norm, {"linf": 0.1, "l2": 0.4}[norm])
    found = diagnose(Defended(model), grey, threat, seed=0, draws=1, device=CPU)
    assert found["nonfinite_gradient"] == found["images"] == 8
    near = diagnose(Defended(model), grey, ThreatModel(norm, 0.01), seed=0, draws=1, device=CPU)
    assert near["nonfinite_gradient"] == 0


def test_a_gradient_that_is_not_finite_in_one_draw_is_counted(split):
    class Drawn(Linear):
        def forward(self, x, rng):
            dark = rng.uniform((1, 1, 1), x.dtype) < 0.5
            return super().forward(torch.where(dark, x.sqrt().square(), x))

    model = Linear()
    found = look(Drawn(), blackened(model, split.x), stochastic=True)
    assert found["nonfinite_gradient"] > 0


def test_a_surrogate_must_be_of_use_to_make_up_for_a_gradient_that_is_not_finite(split):
    class Cut(Linear):
        def forward(self, x):
            return super().forward(x.detach())

    black = blackened(Root(), split.x)

    def count(*models):
        surrogates = {str(number): Surrogate(model) for number, model in enumerate(models)}
        return look(models[0], black, surrogates=surrogates)["nonfinite_gradient"]

    assert count(Root(), Linear()) == 0
    assert count(Root(), Root()) >= IMAGES // 2
    assert count(Root(), Steps()) >= IMAGES // 2, "no gradient is no help"
    assert count(Cut(), Root()) >= IMAGES // 2
    assert count(Cut(), Steps()) == 0


def test_logits_cut_from_the_images_count_as_without_a_gradient(split):
    class Cut(Linear):
        def forward(self, x):
            return super().forward(x.detach())

    found = look(Cut(), split)
    assert found["zero_gradient"] == found["flat"] == found["images"]
    assert found["nonfinite_gradient"] == 0


def test_the_model_comes_back_as_it_went_in(split):
    model = Linear().train()
    before = split.x.clone()
    look(model, split)
    assert model.training
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert torch.equal(split.x, before)


@pytest.mark.slow
def test_five_honest_models_have_at_most_one_flag_in_all(tmp_path, monkeypatch):
    """Trained in linf, in l2, by TRADES, at epsilon 0.1, and not defended at all."""
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path / "cache"))
    plan = make_plan(
        make_config(
            matrix="white-box,black-box",
            defense="none,pgd-linf,pgd-l2,trades,pgd-linf(epsilon=0.1)",
            attack="uniform-noise,fgsm,pgd(steps=5),pgd(steps=20),deepfool",
            epsilon="0.08,0.125",
            epochs=3,
            n_examples=150,
            substitute_rounds=1,
            batch=256,
            jobs=1,
            device="cpu",
            out=tmp_path / "out",
        )
    )
    assert not run_plan(plan).failures
    found = ranked_boards(load(plan.store, plan.cells))
    assert [len(board.standings) for board in found] == [5, 5]
    flagged = [(one.label, flag.name, flag.measured) for board in found for one in board.standings for flag in one.flags]
    assert len(flagged) <= 1, flagged
    records = [plan.store.read(key) for key in plan.cells]
    seen = [record.details["diagnosis"] for record in records if record.matrix == "white-box"]
    assert {found["images"] for found in seen} == {IMAGES}
    assert not any("diagnosis" in record.details for record in records if record.matrix != "white-box")
