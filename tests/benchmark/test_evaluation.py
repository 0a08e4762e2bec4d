"""The harness verifies: budgets, boxes, NaN, re-prediction, and two-stage scoring of stochastic models."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.threat import ThreatModel
from advbench.defenses.defended import Defended, Detector, Surrogate
from advbench.tasks.evaluation import ViolationError, count, craft, score
from advbench.zoo.data import Split

CPU = torch.device("cpu")
LINF = ThreatModel("linf", 0.1)


class Linear(nn.Module):
    """Two classes, split by the sum of the pixels minus `threshold`."""

    def __init__(self, threshold=2.0):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        margin = x.flatten(1).sum(dim=1) - self.threshold
        return torch.stack((-margin, margin), dim=1)


class Coin(nn.Module):
    """Answers class 1 with a probability that is the image's mean, by a draw of its own for every kind of image."""

    def forward(self, x, rng):
        p = x.flatten(1).mean(dim=1)
        one = rng.fork(f"{float(p[0]):.5f}").uniform((), x.dtype) < p
        return torch.stack((~one, one), dim=1).to(x.dtype)


@dataclass(frozen=True)
class Shift:
    """Moves every pixel by a constant."""

    amount: float
    norms: ClassVar = frozenset({"linf"})
    minimal_norm: ClassVar = False
    knowledge: ClassVar = WhiteBox

    def __call__(self, access, x, goal, threat, rng):
        access.logits(x)
        return x + self.amount


def images(n=6, value=0.5):
    return Split.of(torch.full((n, 1, 2, 2), value), torch.ones(n, dtype=torch.int64))


def attack_with(attack, split=None, threat=LINF, batch=4):
    return craft(attack, Surrogate(Linear()), split or images(), threat, seed=0, draws=1, batch=batch, device=CPU)


def test_a_craft_counts_every_pass_of_every_example():
    found = attack_with(Shift(0.05))
    assert found.ledger.forwards.tolist() == [1] * 6
    assert found.ledger.backwards.tolist() == [0] * 6
    assert torch.equal(found.x_adv, torch.full((6, 1, 2, 2), 0.5) + 0.05)
    assert found.measured.seconds > 0
    assert found.measured.peak_memory_bytes > 0


@pytest.mark.parametrize(
    ("attack", "split", "message"),
    [
        (Shift(0.2), images(), "within linf 0.1 .* 4 of 4 outside"),
        (Shift(0.05), images(value=1.0), "outside"),
        (Shift(float("nan")), images(), "outside"),
    ],
)
def test_what_the_threat_forbids_is_an_error_and_never_a_silent_clip(attack, split, message):
    with pytest.raises(ViolationError, match=message):
        attack_with(attack, split)


def test_a_changed_shape_is_an_error():
    class Grow(Shift):
        def __call__(self, access, x, goal, threat, rng):
            return x.repeat(1, 1, 2, 1)

    with pytest.raises(ViolationError, match="Expected adversarial images"):
        attack_with(Grow(0.0))


def test_success_is_what_the_fresh_forward_says():
    split = images(value=0.55)
    defended = Defended(Linear())
    clean = count(defended, split, seed=0, draws=10, batch=4, device=CPU)
    assert clean.draws == 1
    assert clean.report.tolist() == [1] * 6
    wrong, right = split.x - 0.1, split.x.clone()
    mixed = torch.cat((wrong[:3], right[3:]))
    found = score(defended, split, clean, [mixed], norm="linf", minimal_norm=False, seed=0, batch=4, device=CPU)
    assert found.examples.report_correct.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.prediction.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_allclose(found.examples.distance_linf, [0.1] * 3 + [0.0] * 3, atol=1e-6)
    np.testing.assert_allclose(found.examples.distance_l2, [0.2] * 3 + [0.0] * 3, atol=1e-6)


def test_the_cell_is_the_worst_over_surrogates_per_example():
    split = images(value=0.55)
    defended = Defended(Linear())
    clean = count(defended, split, seed=0, draws=1, batch=8, device=CPU)
    first, second = split.x.clone(), split.x.clone()
    first[:2] -= 0.1
    second[1:4] -= 0.09
    found = score(defended, split, clean, [first, second], norm="linf", minimal_norm=False, seed=0, batch=8, device=CPU)
    assert found.examples.report_correct.tolist() == [0, 0, 0, 0, 1, 1]
    nearest = score(defended, split, clean, [first, second], norm="linf", minimal_norm=True, seed=0, batch=8, device=CPU)
    np.testing.assert_allclose(nearest.examples.distance_linf[:4], [0.1, 0.09, 0.09, 0.09], atol=1e-6)
    assert np.isinf(nearest.examples.distance_linf[4:]).all()


def test_an_example_that_was_left_alone_has_no_distance():
    split = images(value=0.4)
    defended = Defended(Linear())
    clean = count(defended, split, seed=0, draws=1, batch=8, device=CPU)
    found = score(defended, split, clean, [split.x], norm="linf", minimal_norm=True, seed=0, batch=8, device=CPU)
    assert found.examples.report_correct.tolist() == [0] * 6
    assert np.isnan(found.examples.distance_l2).all()


def test_a_model_that_answers_nan_is_an_error_and_not_robust():
    with pytest.raises(ViolationError, match="NaN or infinity on 4 of 4"):
        count(Defended(Linear(threshold=float("nan"))), images(), seed=0, draws=1, batch=4, device=CPU)


def test_reported_draws_are_fresh_and_unbiased():
    """The worst of many equal candidates must not look worse than it is: the choice and the report share no noise."""
    split = images(n=400, value=0.6)
    defended = Defended(Coin(), stochastic=True)
    clean = count(defended, split, seed=3, draws=10, batch=128, device=CPU)
    assert clean.draws == 10
    assert abs(clean.report.double().mean() / 10 - 0.6) < 0.03
    assert not torch.equal(clean.select, clean.report)
    candidates = [split.x + shift for shift in (0.0, 1e-4, 2e-4, 3e-4, 4e-4)]
    found = score(defended, split, clean, candidates, norm="linf", minimal_norm=False, seed=3, batch=128, device=CPU)
    assert found.examples.select_correct.mean() / 10 < 0.5
    assert abs(found.examples.report_correct.mean() / 10 - 0.6) < 0.03


def test_a_clean_image_is_a_candidate_for_a_stochastic_model():
    split = images(n=50, value=0.2)
    defended = Defended(Coin(), stochastic=True)
    clean = count(defended, split, seed=0, draws=10, batch=64, device=CPU)
    found = score(defended, split, clean, [split.x + 0.7], norm="linf", minimal_norm=False, seed=0, batch=64, device=CPU)
    assert found.examples.report_correct.mean() < 4


class Bright(nn.Module):
    """Rejects images brighter than 0.58."""

    def forward(self, x):
        return x.flatten(1).mean(dim=1) - 0.58


class Unsure(nn.Module):
    """Rejects three images in ten, whatever they show."""

    def forward(self, x, rng):
        return 0.3 - rng.fork("unsure").uniform((), x.dtype) + 0 * x.flatten(1).sum(dim=1)


def test_a_rejected_clean_image_is_lost_and_a_rejected_adversarial_has_failed():
    split = images(value=0.55)
    split.x[0] += 0.05  # clean, and rejected
    defended = Defended(Linear(), detector=Detector(Bright()))
    clean = count(defended, split, seed=0, draws=1, batch=4, device=CPU)
    assert clean.report.tolist() == [0, 1, 1, 1, 1, 1]
    assert clean.report_rejected.tolist() == [1, 0, 0, 0, 0, 0]
    assert clean.wrong.tolist() == [0] * 6
    wrong, rejected = split.x - 0.1, Split.of(torch.full((6, 1, 2, 2), 0.55), 1 - split.y)
    mixed = torch.cat((wrong[:3], torch.full((3, 1, 2, 2), 0.6)))
    found = score(defended, split, clean, [mixed], norm="linf", minimal_norm=False, seed=0, batch=4, device=CPU)
    assert found.examples.report_correct.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.examples.report_rejected.tolist() == [0, 0, 0, 1, 1, 1]
    assert found.examples.report_wrong.tolist() == [1, 1, 1, 0, 0, 0]
    np.testing.assert_allclose(found.examples.report_score, [-0.13, -0.13, -0.13, 0.02, 0.02, 0.02], atol=0.051)
    assert found.accuracies == (3 / 6,)
    blind = count(defended, rejected, seed=0, draws=1, batch=4, device=CPU)  # every label is wrong, no image is rejected
    assert (blind.report.sum(), blind.wrong.sum(), blind.report_rejected.sum()) == (0, 6, 0)


def test_a_misclassified_image_that_is_rejected_counts_as_withstood():
    split = images(value=0.55)
    defended = Defended(Linear(), detector=Detector(Bright()))
    flipped = Split.of(split.x, 1 - split.y)  # the label of the dark side, so that brighter images are errors
    clean = count(defended, Split.of(flipped.x - 0.1, flipped.y), seed=0, draws=1, batch=8, device=CPU)
    bright = torch.full((6, 1, 2, 2), 0.55)
    bright[3:] += 0.05
    dark = Split.of(flipped.x - 0.1, flipped.y)
    found = score(defended, dark, clean, [bright], norm="linf", minimal_norm=False, seed=0, batch=8, device=CPU)
    assert found.examples.report_wrong.tolist() == [1] * 6
    assert found.examples.report_correct.tolist() == [0, 0, 0, 1, 1, 1]


def watched_candidates():
    """Dark images, and two candidates: one that changes nothing, one that fools, but is rejected for the last two images."""
    flipped = images(value=0.55)
    defended = Defended(Linear(), detector=Detector(Bright()))
    dark = Split.of(flipped.x - 0.1, 1 - flipped.y)
    harmless, fooling = dark.x + 0.01, dark.x + 0.11
    fooling[4:] += 0.05
    return defended, dark, harmless, fooling


def test_every_candidate_that_fools_the_classifier_and_is_only_rejected_is_kept_in_mind():
    defended, dark, harmless, fooling = watched_candidates()
    clean = count(defended, dark, seed=0, draws=1, batch=8, device=CPU)
    assert clean.fooled.tolist() == [0] * 6
    for candidates in ([harmless, fooling], [fooling, harmless]):
        found = score(defended, dark, clean, candidates, norm="linf", minimal_norm=False, seed=0, batch=8, device=CPU)
        assert found.examples.report_correct.tolist() == [0, 0, 0, 0, 1, 1]
        assert found.examples.fooled_rejected.tolist() == [0, 0, 0, 0, 1, 1], "whichever was chosen"
    found = score(defended, dark, clean, [harmless], norm="linf", minimal_norm=False, seed=0, batch=8, device=CPU)
    assert found.examples.fooled_rejected.tolist() == [0] * 6


@pytest.mark.parametrize(("epsilon", "expected"), [(None, 1), (0.2, 1), (0.12, 0)])
def test_a_minimal_norm_candidate_beyond_the_radius_says_nothing_of_the_detector(epsilon, expected):
    defended, dark, harmless, fooling = watched_candidates()
    clean = count(defended, dark, seed=0, draws=1, batch=8, device=CPU)
    how = {"norm": "linf", "minimal_norm": True, "epsilon": epsilon, "seed": 0, "batch": 8, "device": CPU}
    found = score(defended, dark, clean, [harmless, fooling], **how)
    assert found.examples.fooled_rejected.tolist() == [0, 0, 0, 0, expected, expected]


def test_errors_that_a_stochastic_detector_rejects_are_counted_over_draws():
    split = images(n=400, value=0.8)
    defended = Defended(Coin(), stochastic=True, detector=Detector(Unsure(), stochastic=True))
    clean = count(defended, split, seed=0, draws=10, batch=64, device=CPU)
    assert abs(clean.fooled.double().mean() / 10 - 0.2 * 0.3) < 0.02  # by itself as often as both happen
    assert (clean.fooled <= torch.minimum(clean.wrong, clean.report_rejected)).all()
    moved = split.x - 0.7
    found = score(defended, split, clean, [moved], norm="linf", minimal_norm=False, seed=0, batch=64, device=CPU)
    assert abs(found.examples.fooled_rejected.mean() / 10 - 0.9 * 0.3) < 0.03


def test_a_stochastic_detector_is_counted_over_draws():
    split = images(n=400, value=0.8)
    defended = Defended(Coin(), stochastic=True, detector=Detector(Unsure(), stochastic=True))
    clean = count(defended, split, seed=0, draws=10, batch=64, device=CPU)
    assert abs(clean.report_rejected.double().mean() / 10 - 0.3) < 0.03
    assert abs(clean.report.double().mean() / 10 - 0.8 * 0.7) < 0.03
    assert not torch.equal(clean.select_rejected, clean.report_rejected)
    moved = split.x - 0.7
    found = score(defended, split, clean, [moved], norm="linf", minimal_norm=False, seed=0, batch=64, device=CPU)
    assert abs(found.accuracies[0] - (0.3 + 0.7 * 0.1)) < 0.03  # rejected, or answered by luck
    assert found.examples.report_correct.mean() / 10 < 0.5


def test_a_detector_must_say_finite_numbers():
    defended = Defended(Linear(), detector=Detector(nn.Flatten()))
    with pytest.raises(ViolationError, match="Expected 4 finite scores of the detector"):
        count(defended, images(), seed=0, draws=1, batch=4, device=CPU)


def test_the_accuracy_of_each_candidate_counts_within_the_radius():
    split = images(value=0.55)
    clean = count(Defended(Linear()), split, seed=0, draws=1, batch=8, device=CPU)
    near, far = split.x.clone(), split.x - 0.3
    near[:2] -= 0.1
    how = {"norm": "linf", "seed": 0, "batch": 8, "device": CPU}
    fixed = score(Defended(Linear()), split, clean, [near, far], minimal_norm=False, **how)
    assert fixed.accuracies == (4 / 6, 0.0)
    minimal = score(Defended(Linear()), split, clean, [near, far], minimal_norm=True, epsilon=0.1, **how)
    assert minimal.accuracies == (4 / 6, 1.0)


def test_draws_do_not_depend_on_the_batch():
    split = images(n=30)
    defended = Defended(Coin(), stochastic=True)
    one, other = (count(defended, split, seed=1, draws=5, batch=batch, device=CPU) for batch in (4, 30))
    assert torch.equal(one.select, other.select)
    assert torch.equal(one.report, other.report)
