"""Bit depth: the exact levels, and what an attacker differentiates in place of a rounding."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.pgd import PGD
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import ThreatModel, Untargeted
from advbench.defenses.defended import Defended
from advbench.defenses.inference.bit_depth import BitDepth, rounded, soft_round


@pytest.mark.parametrize("bits", range(1, 9))
def test_the_levels_are_exact_and_every_pixel_goes_to_the_nearest(bits):
    x = torch.linspace(0, 1, 10_001, dtype=torch.float64).view(1, 1, 73, 137)
    levels = torch.linspace(0, 1, 2**bits, dtype=torch.float64)
    found = rounded(x, bits)
    assert torch.equal(found.unique(), torch.arange(2**bits, dtype=torch.float64) / (2**bits - 1))
    nearest = (x.flatten().unsqueeze(1) - levels).abs().amin(dim=1)
    torch.testing.assert_close((found - x).abs().flatten(), nearest, atol=1e-12, rtol=0)


def test_one_bit_is_a_threshold_and_eight_bits_keep_an_image_file():
    x = torch.tensor([0.0, 0.49, 0.51, 1.0])
    assert torch.equal(rounded(x, 1), torch.tensor([0.0, 0.0, 1.0, 1.0]))
    pixels = torch.arange(256, dtype=torch.float32) / 255
    assert torch.equal(rounded(pixels, 8), pixels)


def test_is_idempotent_and_clips():
    x = torch.randn(3, 1, 5, 5)
    found = rounded(x, 3)
    assert torch.equal(rounded(found, 3), found)
    assert torch.equal(found, rounded(x.clamp(0, 1), 3))


def test_the_precision_of_the_image_does_not_move_a_pixel():
    x = torch.rand(20, 1, 9, 9)
    for bits in (1, 3, 8):
        assert torch.equal(rounded(x.double(), bits).float(), rounded(x, bits))


def test_the_model_sees_the_rounded_image(lab):
    base, reduced = lab.fitted("none"), lab.fitted("bit-depth(bits=2)")
    x = lab.data.validation.x
    torch.testing.assert_close(reduced.model(x), base.model(rounded(x, 2)))


def test_the_attacker_has_the_gradient_at_the_rounded_image(lab):
    """No faithful surrogate; bpda's gradient at x is the base's at round(x)."""
    base, reduced, split = lab.fitted("none"), lab.fitted("bit-depth(bits=2)"), lab.data.validation
    assert list(reduced.surrogates) == ["bpda", "bpda-soft", "base"]
    x, at = split.x.clone().requires_grad_(), rounded(split.x, 2).requires_grad_()
    (found,) = torch.autograd.grad(reduced.surrogates["bpda"].model(x)[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(base.model(at)[:, 0].sum(), at)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(reduced.surrogates["bpda"].model(x), reduced.model(x))


def test_soft_rounding_rounds_and_has_the_cubic_slope():
    x = torch.tensor([0.0, 0.2, 0.5, 0.9, -1.3], dtype=torch.float64, requires_grad=True)
    found = soft_round(x)
    assert torch.equal(found, x.round())
    (slope,) = torch.autograd.grad(found.sum(), x)
    torch.testing.assert_close(slope, torch.tensor([0.0, 0.12, 0.75, 0.03, 0.27], dtype=torch.float64))


def test_soft_slopes_spend_the_budget_where_a_pixel_can_change(lab):
    """An l2 attacker of a linear model: the heavy pixel is out of reach, the light one is near its threshold."""
    linear = nn.Sequential(nn.Flatten(), nn.Linear(2, 2, bias=False))
    with torch.no_grad():
        linear[1].weight.copy_(torch.tensor([[-1.0, -0.5], [1.0, 0.5]]))
    reduced = BitDepth(bits=1).build(None, lab.data, {"base": Defended(linear)})
    x, threat = torch.tensor([[[[0.1, 0.45]]]]), ThreatModel("l2", 0.1)
    found = {}
    for name in ("bpda", "bpda-soft"):
        rng = ExampleRNG.make(0, "attack", torch.arange(1))
        with WhiteBox(reduced.surrogates[name].model, rng) as access:
            x_adv = PGD(steps=20, random_start=False)(access, x, Untargeted(torch.tensor([0])), threat, rng)
        found[name] = rounded(x_adv, 1).flatten().tolist()
    assert found == {"bpda": [0.0, 0.0], "bpda-soft": [0.0, 1.0]}


def test_goes_in_front_of_other_defenses(lab):
    split = lab.data.validation
    for base in ("pgd-linf", "gaussian-blur", "input-noise(passes=2)"):
        behind, reduced = lab.fitted(base), lab.fitted(f"bit-depth(base={base!r})")
        assert reduced.stochastic == behind.stochastic
        assert lab.logits(reduced, split.x, split.index).isfinite().all()


@pytest.mark.parametrize("bits", [0, 9])
def test_rejects_what_makes_no_sense(bits):
    with pytest.raises(ValueError, match=f"Expected `bits` in 1..8, got {bits}"):
        BitDepth(bits=bits)
