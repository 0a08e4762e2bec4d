from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo import ARCHITECTURES
from advbench.zoo.architectures.gu2014 import ae400_10, autoencoder, sparse_autoencoder
from advbench.zoo.architectures.malade2018 import denoiser
from advbench.zoo.architectures.mosca2018 import all_cnn
from advbench.zoo.preprocessing import LumaContrast, Whiten, fit_statistics
from advbench.zoo.training import seeded

GREY = (1, 28, 28)
COLOUR = (3, 32, 32)


def build(name: str, shape: tuple[int, int, int], n_classes: int) -> nn.Module:
    return registry.build_network(Spec(name), shape, n_classes)


def _conv(inputs: int, filters: int, kernel: int) -> int:
    return inputs * filters * kernel**2 + filters


def _dense(*widths: int) -> int:
    return sum(a * b + b for a, b in pairwise(widths))


def _norm(*widths: int) -> int:
    return 2 * sum(widths)


def _vgg(channels: int) -> int:
    filters = [64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    convolutions = sum(_conv(a, b, 3) for a, b in zip([channels, *filters], filters, strict=False))
    return convolutions + _norm(*filters) + _dense(512, 512, 10) + _norm(512)


def _all_cnn(channels: int) -> int:
    filters = [96, 96, 96, 192, 192, 192, 192]
    convolutions = sum(_conv(a, b, 3) for a, b in zip([channels, *filters], filters, strict=False))
    return convolutions + _conv(192, 192, 1) + _conv(192, 10, 1) + _norm(*filters, 192, 10)


COUNTS = {
    ("gu2014/n100-100-10", GREY): _dense(784, 100, 100, 10),
    ("gu2014/n200-200-10", GREY): _dense(784, 200, 200, 10),
    ("gu2014/n200-200-10", COLOUR): _dense(3072, 200, 200, 10),
    ("gu2014/ae400-10", GREY): _dense(784, 400, 10),
    ("gu2014/convnet", GREY): _conv(1, 32, 5) + _conv(32, 64, 5) + _dense(64 * 7 * 7, 200, 10),
    ("shaham2015/convnet", GREY): _conv(1, 32, 5) + _conv(32, 64, 5) + _dense(256, 200, 10),
    ("shaham2015/convnet", (1, 32, 32)): _conv(1, 32, 5) + _conv(32, 64, 5) + _dense(256, 200, 10),
    ("shaham2015/convnet-bn", GREY): _conv(1, 32, 5) + _conv(32, 64, 5) + _dense(256, 200, 10),
    ("shaham2015/vgg", COLOUR): _vgg(3),
    ("shaham2015/vgg", GREY): _vgg(1),
    ("mosca2018/dnn", GREY): _dense(784, 2500, 2000, 1500, 1000, 500, 10) + _norm(2500, 2000, 1500, 1000, 500, 10),
    ("mosca2018/cnn", GREY): _conv(1, 64, 5) + _conv(64, 64, 5) + _dense(64 * 4 * 4, 1024, 10) + _norm(64, 64, 1024, 10),
    ("mosca2018/all-cnn", COLOUR): _all_cnn(3),
    ("malade2018/a", GREY): _conv(1, 64, 5) + _conv(64, 64, 5) + _dense(64 * 12 * 12, 128, 10),
    ("malade2018/b", GREY): _conv(1, 64, 8) + _conv(64, 128, 6) + _conv(128, 128, 5) + _dense(128, 10),
    ("malade2018/c", GREY): _conv(1, 128, 3) + _conv(128, 64, 5) + _dense(64 * 12 * 12, 128, 10),
    ("malade2018/d", GREY): _dense(784, 200, 200, 10),
    ("sgr2018/mnist-cnn", GREY): 312_202,
    ("sgr2018/cifar-cnn", COLOUR): 1_147_978,
    ("wong2018/small", GREY): _conv(1, 16, 4) + _conv(16, 32, 4) + _dense(32 * 7 * 7, 100, 10),
}


@pytest.mark.parametrize(("name", "shape"), COUNTS)
def test_parameter_counts_are_those_of_the_papers(name: str, shape: tuple[int, int, int]) -> None:
    assert sum(parameter.numel() for parameter in build(name, shape, 10).parameters()) == COUNTS[name, shape]


def test_every_architecture_has_a_counted_size() -> None:
    assert {name for name, _ in COUNTS} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_outputs_are_logits_of_each_image_alone(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(3, *GREY, generator=generator, dtype=torch.float64)
    with seeded(0):
        model = build(name, GREY, 7).double()
    fit_statistics(model, x)
    model.eval()
    with torch.no_grad():
        logits = model(x)
        alone = torch.cat([model(image.unsqueeze(0)) for image in x])
    assert logits.shape == (3, 7)
    assert not torch.allclose(logits.sum(1), torch.ones(3, dtype=torch.float64), atol=1e-3)
    assert not torch.allclose(logits.logsumexp(1), torch.zeros(3, dtype=torch.float64), atol=1e-3)
    torch.testing.assert_close(logits, alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("level", [0.0, 1.0])
def test_flat_images_have_finite_gradients(name: str, level: float) -> None:
    with seeded(0):
        model = build(name, GREY, 3).eval()
    x = torch.full((1, *GREY), level, requires_grad=True)
    (gradient,) = torch.autograd.grad(model(x)[0, 0], x)
    assert gradient.isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_seed_alone_decides_the_weights(name: str) -> None:
    weights = []
    for seed in (1, 1, 2):
        with seeded(seed):
            weights.append(torch.cat([parameter.flatten() for parameter in build(name, GREY, 2).parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("name", ["shaham2015/convnet", "mosca2018/cnn", "malade2018/b", "sgr2018/mnist-cnn"])
def test_images_that_shrink_to_nothing_are_one_clear_line(name: str) -> None:
    with pytest.raises(ValueError, match=f"^Expected larger images for {name}, got 1x8x8") as caught:
        build(name, (1, 8, 8), 10)
    assert "\n" not in str(caught.value)


def test_a_single_class_is_an_error() -> None:
    with pytest.raises(ValueError, match="`n_classes` >= 2, got 1"):
        build("torchvision/resnet18", COLOUR, 1)


def _sizes(name: str, shape: tuple[int, int, int], *kinds: type[nn.Module]) -> list[int]:
    """Widths of the maps that the layers of the given kinds hand on for one image."""
    widths, x = [], torch.zeros(1, *shape)
    network = build(name, shape, 10).eval()
    assert isinstance(network, nn.Sequential)
    for layer in network:
        x = layer(x)
        if isinstance(layer, kinds):
            widths.append(x.shape[-1])
    return widths


def test_the_maps_shrink_as_the_papers_trace_them() -> None:
    assert _sizes("sgr2018/mnist-cnn", GREY, nn.Conv2d, nn.MaxPool2d) == [26, 24, 12, 10, 8, 4]
    assert _sizes("sgr2018/cifar-cnn", COLOUR, nn.Conv2d, nn.MaxPool2d) == [30, 28, 14, 12, 10, 5]
    assert _sizes("shaham2015/convnet", (1, 32, 32), nn.Conv2d, nn.MaxPool2d) == [28, 9, 5, 2]
    assert _sizes("shaham2015/vgg", COLOUR, nn.MaxPool2d) == [16, 8, 4, 2, 1]
    assert _sizes("mosca2018/all-cnn", COLOUR, nn.Conv2d) == [32, 32, 16, 16, 16, 8, 8, 8, 8]


def test_initial_weights_follow_the_published_configurations() -> None:
    with seeded(0):
        dnn, vgg = build("mosca2018/dnn", GREY, 10), build("shaham2015/vgg", COLOUR, 10)
    first = next(layer for layer in dnn if isinstance(layer, nn.Linear))
    assert first.weight.abs().max() <= 0.05
    assert first.weight.std().item() == pytest.approx(0.05 / math.sqrt(3), rel=0.01)
    last = [layer for layer in vgg if isinstance(layer, nn.Conv2d)][-1]
    assert last.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * 512)), rel=0.01)
    assert not last.bias.any()


def test_the_input_batch_norm_of_the_convnet_takes_the_scale_of_the_batch_away() -> None:
    """While training, an affine map of all pixels changes nothing; the network without that layer answers otherwise."""
    x = torch.rand(8, *GREY, generator=torch.Generator().manual_seed(0))
    for name, equal in (("shaham2015/convnet-bn", True), ("shaham2015/convnet", False)):
        with seeded(0):
            model = build(name, GREY, 10).train()
        assert torch.allclose(model(x), model(0.5 * x + 0.2), atol=1e-3) == equal


def test_the_vgg_sees_luma_with_local_contrast_fitted_on_training_images() -> None:
    """A brighter or flatter image is the same to its luma; U and V are standardised by the training images."""
    with seeded(0):
        model = build("shaham2015/vgg", COLOUR, 10).eval()
    x = torch.rand(6, *COLOUR, generator=torch.Generator().manual_seed(0))
    fit_statistics(model, x)
    first = model[0]
    assert isinstance(first, LumaContrast)
    torch.testing.assert_close(first(0.5 * x + 0.25)[:, 0], first(x)[:, 0], atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(first(x)[:, 1:].mean(dim=(0, 2, 3)), torch.zeros(2), atol=1e-4, rtol=0)


def test_whitened_images_need_no_whitening_network() -> None:
    with seeded(0):
        inside = all_cnn((3, 12, 12), 10).eval()
    with seeded(0):
        outside = all_cnn((3, 12, 12), 10, whiten=False).eval()
    x = torch.rand(40, 3, 12, 12, generator=torch.Generator().manual_seed(0))
    whiten = inside[0]
    assert isinstance(whiten, Whiten)
    whiten.fit_statistics(x)
    torch.testing.assert_close(inside(x[:2]), outside(whiten(x[:2])))


def test_autoencoders_map_images_to_images_in_their_range() -> None:
    x = torch.rand(2, *GREY)
    for model in (autoencoder(GREY), sparse_autoencoder(GREY)):
        output = model(x)
        assert output.shape == x.shape
        assert 0 <= output.min() <= output.max() <= 1
    assert sum(parameter.numel() for parameter in autoencoder(GREY).parameters()) == _dense(784, 256, 128, 256, 784)
    for shape in (GREY, COLOUR):
        assert denoiser(shape)(torch.rand(2, *shape)).shape == (2, *shape)
    with pytest.raises(ValueError, match="multiples of 4, got 30x28"):
        denoiser((1, 30, 28))


def test_the_sparse_autoencoder_shares_its_encoder_with_the_classifier() -> None:
    classifier, pretrained = ae400_10(GREY, 10), sparse_autoencoder(GREY)
    classifier[1].load_state_dict(pretrained[1].state_dict())
    x = torch.rand(2, *GREY)
    assert torch.equal(classifier[:3](x), pretrained[:3](x))


def test_torchvision_networks_standardise_and_give_logits() -> None:
    model = build("torchvision/resnet18", COLOUR, 7)
    assert model.training
    x = torch.rand(4, *COLOUR)
    fit_statistics(model, x)
    torch.testing.assert_close(model[0](x).mean(dim=(0, 2, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    assert model.eval()(x).shape == (4, 7)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("torchvision/resnet18", GREY, "3 channels for torchvision/resnet18, got 1"),
        ("torchvision/resnet19", COLOUR, "got 'resnet19'"),
        ("torchvision/fcn_resnet50", COLOUR, "got 'fcn_resnet50'"),
        ("torchvision/alexnet", COLOUR, "another image size for torchvision/alexnet, got 3x32x32"),
    ],
)
def test_torchvision_errors_are_one_clear_line(name: str, shape: tuple[int, int, int], message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        build(name, shape, 10)
    assert "\n" not in str(caught.value)
