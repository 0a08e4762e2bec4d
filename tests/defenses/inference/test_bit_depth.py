"""Bit depth: the exact levels, and what an attacker differentiates in place of a rounding."""

from __future__ import annotations

import pytest
import torch

from advbench.defenses.inference.bit_depth import BitDepth, rounded


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
    assert list(reduced.surrogates) == ["bpda", "base"]
    x, at = split.x.clone().requires_grad_(), rounded(split.x, 2).requires_grad_()
    (found,) = torch.autograd.grad(reduced.surrogates["bpda"].model(x)[:, 0].sum(), x)
    (expected,) = torch.autograd.grad(base.model(at)[:, 0].sum(), at)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(reduced.surrogates["bpda"].model(x), reduced.model(x))


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
