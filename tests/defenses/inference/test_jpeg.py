"""JPEG: the codec against Pillow, the attacker's stand-in against the codec on real images, and its Jacobian."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import fft, ndimage
from sklearn.datasets import load_digits

from advbench.defenses.inference.jpeg import JPEG, Compressed, SoftJPEG, cosine_basis, tables


def round_trip(image: np.ndarray, quality: int) -> np.ndarray:
    """An 8-bit image (h, w) or (h, w, 3) through Pillow's codec."""
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=quality)
    return np.asarray(Image.open(io.BytesIO(file.getvalue())))


def digits(height: int = 28, width: int = 28, n: int = 6) -> torch.Tensor:
    """Handwritten digits, enlarged, with pixels of 8 bits, (n, 1, h, w)."""
    found = load_digits().images[:n] / 16
    large = np.stack([ndimage.zoom(image, (height / 8, width / 8), order=1) for image in found])
    return torch.from_numpy((large.clip(0, 1) * 255).round() / 255).float().unsqueeze(1)


def photographs(height: int = 32, width: int = 32) -> torch.Tensor:
    """Smooth colour images with edges and texture, 8 bits, (4, 3, h, w)."""
    rng = np.random.default_rng(0)
    noise = ndimage.gaussian_filter(rng.normal(size=(4, 3, height, width)), (0, 0, 3, 3)) * 8
    noise[:, :, height // 3 :, width // 2 :] += 0.7
    texture = 0.03 * rng.normal(size=noise.shape)
    return torch.from_numpy(((0.5 + 0.25 * noise + texture).clip(0, 1) * 255).round() / 255).float()


@pytest.mark.parametrize("quality", [10, 75, 95])
def test_the_defense_is_pillows_codec(quality):
    for x in (digits(), photographs(), photographs(27, 45)):
        pixels = (x * 255).round().to(torch.uint8).numpy().transpose(0, 2, 3, 1).squeeze()
        expected = np.stack([round_trip(image, quality) for image in pixels]).reshape(len(x), *x.shape[2:], x.shape[1])
        found = Compressed(quality)(x) * 255
        assert torch.equal(found.round().to(torch.uint8), torch.from_numpy(expected.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize("quality", [1, 10, 49, 50, 75, 90, 100])
def test_the_tables_are_the_codecs(quality):
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 120, 30)).save(file, "JPEG", quality=quality)
    written = Image.open(io.BytesIO(file.getvalue())).quantization
    assert tables(quality) == (tuple(written[0]), tuple(written[1]))


def test_the_transform_is_orthonormal_and_scipys():
    basis = cosine_basis()
    torch.testing.assert_close(basis @ basis.T, torch.eye(8, dtype=torch.float64))
    torch.testing.assert_close(basis, torch.from_numpy(fft.dct(np.eye(8), axis=0, norm="ortho")))


@pytest.mark.parametrize("quality", [10, 50, 75, 95])
@pytest.mark.parametrize("make", [digits, photographs])
@pytest.mark.parametrize("size", [(32, 32), (28, 28), (27, 45)])
def test_the_stand_in_is_close_to_the_codec(quality, make, size):
    """Its transforms are in floating point, the codec's in integers: apart where a coefficient is next to a half."""
    x = make(*size)
    difference = (SoftJPEG(quality)(x) - Compressed(quality)(x)).abs() * 255
    changed = float((Compressed(quality)(x) - x).abs().mean()) * 255
    assert float(difference.mean()) < max(0.7, 0.1 * changed)
    assert float(difference.quantile(0.9)) <= 2.0


def test_the_stand_in_is_close_on_cifar(data_dir):
    file = data_dir / "cifar10-small.npz"
    if not file.exists():
        pytest.skip(f"no {file.name} at {data_dir}")
    with np.load(file, allow_pickle=False) as arrays:
        images = arrays["x_test"][:50]
    x = torch.from_numpy(images).float().permute(0, 3, 1, 2) / 255
    for quality in (25, 75):
        compressed = Compressed(quality)(x)
        near, far = (SoftJPEG(quality)(x) - compressed).abs().mean(), (x - compressed).abs().mean()
        assert near < 0.1 * far


def test_without_rounding_a_gray_image_comes_back_and_has_the_identity_for_its_jacobian():
    x = torch.rand(1, 1, 9, 11, dtype=torch.float64)
    plain = SoftJPEG(75, round=lambda values: values).double()
    pixels = (x * 255).round() / 255
    torch.testing.assert_close(plain(pixels), pixels)
    jacobian = torch.autograd.functional.jacobian(plain, x).reshape(99, 99)
    torch.testing.assert_close(jacobian, torch.eye(99, dtype=torch.float64))


def test_without_rounding_colour_only_loses_detail_of_chroma():
    smooth = SoftJPEG(75, round=lambda values: values).double()
    gray = ((torch.rand(1, 1, 8, 10, dtype=torch.float64) * 255).round() / 255).expand(1, 3, 8, 10)
    torch.testing.assert_close(smooth(gray), gray, atol=2e-3, rtol=0)
    flat = torch.tensor([0.2, 0.6, 0.8], dtype=torch.float64).view(1, 3, 1, 1).expand(1, 3, 9, 9)
    torch.testing.assert_close(smooth(flat), flat, atol=1.1 / 255, rtol=0)


def test_the_jacobian_of_a_block_is_that_of_its_softly_rounded_coefficients():
    """J v = idct(3 (c - round(c))^2 dct(v)), c the coefficients in steps; by scipy."""
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8)).astype(np.float64)
    steps = np.array(tables(75)[0], dtype=np.float64).reshape(8, 8)
    coefficients = fft.dctn(pixels - 128, norm="ortho") / steps
    slopes = 3 * (coefficients - coefficients.round()) ** 2
    upper = np.random.default_rng(1).normal(size=(8, 8))
    expected = fft.idctn(slopes * fft.dctn(upper, norm="ortho"), norm="ortho")
    x = torch.from_numpy(pixels / 255).view(1, 1, 8, 8).requires_grad_()
    (found,) = torch.autograd.grad(SoftJPEG(75).double()(x), x, torch.from_numpy(upper).view(1, 1, 8, 8))
    torch.testing.assert_close(found.view(8, 8), torch.from_numpy(expected))


def test_colour_pulls_back_through_chroma_at_half_the_size():
    """Without rounding of coefficients a gradient in blue reaches its neighbours through chroma: it is spread, not lost."""
    x = torch.full((1, 3, 8, 8), 0.5, dtype=torch.float64).requires_grad_()
    upper = torch.zeros_like(x)
    upper[0, 2, 3, 3] = 1.0
    (found,) = torch.autograd.grad(SoftJPEG(75, round=lambda values: values).double()(x), x, upper)
    assert found[0].sum().item() == pytest.approx(1.0, abs=1e-6)  # gray in, gray out
    assert (found[0, 2].abs() > 1e-9).sum() > 4


def test_the_attacker_has_the_codecs_output_with_either_jacobian(lab):
    defended, x = lab.fitted("jpeg(quality=50)"), lab.data.validation.x
    assert list(defended.surrogates) == ["bpda", "bpda-soft", "base"]
    for name in ("bpda", "bpda-soft"):
        torch.testing.assert_close(defended.surrogates[name].model(x), defended.model(x))
    base = lab.fitted("none")
    torch.testing.assert_close(defended.model(x), base.model(Compressed(50)(x)))
    images, at = x.clone().requires_grad_(), Compressed(50)(x).requires_grad_()
    (upper,) = torch.autograd.grad(base.model(at)[:, 0].sum(), at)
    (identity,) = torch.autograd.grad(defended.surrogates["bpda"].model(images)[:, 0].sum(), images)
    torch.testing.assert_close(identity, upper)
    (soft,) = torch.autograd.grad(defended.surrogates["bpda-soft"].model(images)[:, 0].sum(), images)
    (pulled,) = torch.autograd.grad(SoftJPEG(50)(images), images, upper)
    torch.testing.assert_close(soft, pulled)


def test_other_channels_are_written_one_by_one():
    x = torch.cat((digits(), digits().flip(3)), dim=1)
    found = Compressed(60)(x)
    for channel in range(2):
        assert torch.equal(found[:, [channel]], Compressed(60)(x[:, [channel]]))
    assert SoftJPEG(60)(x).shape == x.shape


@pytest.mark.parametrize("quality", [0, 101])
def test_rejects_what_makes_no_sense(quality):
    with pytest.raises(ValueError, match=f"Expected `quality` in 1..100, got {quality}"):
        JPEG(quality=quality)
