"""Training on clean and perturbed images, and label leaking."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from advbench.attacks.correlated_noise import correlated
from advbench.attacks.covariance import of_function
from advbench.attacks.threat import ThreatModel
from advbench.defenses.kernels.covariance import exponential
from advbench.defenses.training.ascent import ascend
from advbench.defenses.training.augmented import CorrelatedAugmented, FGSMAugmented, PGDAugmented, predicted
from advbench.defenses.training.label_leaking import label_leaking
from advbench.defenses.training.trained import stream
from advbench.zoo.data import Split
from advbench.zoo.training import Step


def step(n: int, *, training: bool = True, iteration: int = 0) -> Step:
    return Step(0, 0, iteration, torch.arange(n), training)


def softmax_layer() -> nn.Module:
    layer = nn.Linear(12, 3).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(3, 12, generator=torch.Generator().manual_seed(1)))
        layer.bias.zero_()
    return nn.Sequential(nn.Flatten(), layer)


def batch(n: int = 9) -> tuple[Tensor, Tensor]:
    x = torch.rand(n, 1, 3, 4, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return x, torch.arange(n) % 3


@pytest.mark.parametrize(
    ("defense", "steps", "size", "start"),
    [(FGSMAugmented(epsilon=0.1), 1, 1.0, False), (PGDAugmented(epsilon=0.1, alpha=0.3), 10, 0.25, True)],
)
def test_the_loss_mixes_clean_and_perturbed_images_that_climb_the_predicted_label(defense, steps, size, start):
    model = softmax_layer()
    x, y = batch()
    answer = model(x).argmax(dim=1)
    assert (answer != y).any()  # otherwise the label that is climbed does not matter
    threat = ThreatModel("linf", 0.1)
    x_adv = ascend(model, x, answer, threat, steps=steps, step_size=size, random_start=start, rng=stream(step(9)))
    terms = defense.objective(model, x, y, step(9))
    torch.testing.assert_close(terms["clean"], defense.alpha * cross_entropy(model(x), y))
    torch.testing.assert_close(terms["adversarial"], (1 - defense.alpha) * cross_entropy(model(x_adv), y))


def test_predicting_leaves_running_statistics_and_the_mode_alone():
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(4, 3)).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    labels = predicted(model, torch.rand(5, 1, 3, 4))
    assert labels.shape == (5,)
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_correlated_noise_is_added_clipped_and_fresh_in_every_step():
    model, (x, y) = softmax_layer(), batch()
    defense = CorrelatedAugmented(alpha=0.25, sigma=0.4, decay_length=2.0)
    noisy = (x + 0.4 * correlated(x, stream(step(9)), 2.0, 0.5)).clamp(0, 1)
    terms = defense.objective(model, x, y, step(9))
    torch.testing.assert_close(terms["noisy"], 0.75 * cross_entropy(model(noisy), y))
    torch.testing.assert_close(terms["clean"], 0.25 * cross_entropy(model(x), y))
    assert defense.objective(model, x, y, step(9, iteration=1))["noisy"] != terms["noisy"]
    held_out = [defense.objective(model, x, y, step(9, training=False, iteration=i))["noisy"] for i in (0, 1)]
    assert held_out[0] == held_out[1]


def test_large_images_get_their_noise_by_fft():
    x = torch.full((1, 1, 70, 70), 0.5)
    defense = CorrelatedAugmented(decay_length=3.0, alpha=0.0)
    seen: list[Tensor] = []

    class Watcher(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.flatten(1)[:, :2]

    defense.objective(Watcher(), x, torch.zeros(1, dtype=torch.int64), step(1))
    noise = of_function(exponential((1, 70, 70), 3.0, 0.5)).sample(x, stream(step(1)))
    torch.testing.assert_close(seen[0], (x + 0.3 * noise).clamp(0, 1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.5}, r"Expected `alpha` in \[0, 1\], got 1.5"),
        ({"channel_correlation": -1.0}, r"Expected `channel_correlation` in \[0, 1\], got -1.0"),
        ({"sigma": 0.0}, "Expected `sigma` > 0, got 0.0"),
        ({"decay_length": -2.0}, "Expected `decay_length` > 0, got -2.0"),
    ],
)
def test_bad_arguments_are_refused_in_a_line(arguments, message):
    with pytest.raises(ValueError, match=message):
        CorrelatedAugmented(**arguments)


def flat_images(n: int = 40) -> Split:
    """Grey images of either class, which nothing but a perturbation tells apart."""
    return Split.of(torch.full((n, 1, 2, 2), 0.5), torch.arange(n) % 2)


class Decoder(nn.Module):
    """Reads the true label off a perturbation: the clean image gets a constant answer, and a slope that says how to leak.

    The logit of class 1 falls with the mean, so that FGSM with true label 1 raises the mean and with 0 lowers it; an answer
    that rises with what is beyond the first step then gives the label away.
    """

    def forward(self, x: Tensor) -> Tensor:
        excess = x.flatten(1).mean(dim=1) - 0.5
        score = 0.01 - excess + 30 * excess.sign() * (excess.abs() - 0.05).clamp_min(0)
        return torch.stack((torch.zeros_like(score), score), dim=1)


def test_a_network_that_reads_labels_off_perturbations_leaks():
    model, split = Decoder().train(), flat_images()
    found = label_leaking(model, split, 0.1)
    assert (found.clean, found.true_label, found.predicted_label) == (0.5, 1.0, 0.5)
    assert found.leaks
    assert model.training


def test_a_linear_network_does_not_leak_and_loses_what_the_margin_says():
    """Under FGSM of a linear model every margin falls by epsilon times the l1 norm of the weights' difference."""
    layer = nn.Linear(4, 2)
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 0, 0, 0], [1, -1, 2, 1]]))
        layer.bias.zero_()
    model = nn.Sequential(nn.Flatten(), layer)
    x = 0.2 + 0.6 * torch.rand(60, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    score = x.flatten(1) @ layer.weight[1].detach()
    y = (score > torch.rand(60, generator=torch.Generator().manual_seed(1)) * 2).long()
    found = label_leaking(model, Split.of(x, y), 0.1, batch=7)
    margin = torch.where(y == 1, score, -score)
    assert found.clean == pytest.approx(float((margin > 0).float().mean()))
    assert found.true_label == pytest.approx(float((margin > 0.1 * 5).float().mean()))
    assert not found.leaks


def test_no_images_measure_nothing():
    empty = Split.of(torch.zeros(0, 1, 2, 2), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(ValueError, match="Expected at least one image to measure label leaking on, got none"):
        label_leaking(softmax_layer(), empty, 0.1)
