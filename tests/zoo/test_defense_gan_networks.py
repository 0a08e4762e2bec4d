"""The generators and critics of Defense-GAN, for images of any size."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from advbench.zoo.architectures.defense_gan import CRITICS, GENERATORS


@pytest.mark.parametrize("name", GENERATORS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 14)])
def test_makes_and_judges_images_of_any_size(name, shape):
    torch.manual_seed(0)
    generator, critic = GENERATORS[name](shape, latent=6, width=2), CRITICS[name](shape, width=2)
    z = torch.randn(3, generator.latent)
    images = generator(z)
    assert images.shape == (3, *shape)
    assert images.min() >= 0
    assert images.max() <= 1
    assert critic(images).shape == (3,)
    torch.testing.assert_close(generator(z[:1]), images[:1])
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in generator.modules())


def test_the_mnist_generator_has_the_sizes_of_the_papers_code():
    generator, critic = GENERATORS["convolutional"]((1, 28, 28)), CRITICS["convolutional"]((1, 28, 28))
    count = sum(parameter.numel() for parameter in generator.parameters())
    # dense 128 -> 4 x 4 x 256, then 5 x 5 filters 256 -> 128 -> 64 -> 1, each with a bias
    assert count == 129 * 4096 + (25 * 256 * 128 + 128) + (25 * 128 * 64 + 64) + (25 * 64 + 1)
    count = sum(parameter.numel() for parameter in critic.parameters())
    assert count == (25 * 64 + 64) + (25 * 64 * 128 + 128) + (25 * 128 * 256 + 256) + (4096 + 1)


def test_untrained_images_vary_with_their_latents():
    torch.manual_seed(0)
    for make in GENERATORS.values():
        images = make((1, 28, 28), width=8)(torch.randn(64, 128))
        assert 0.02 < images.std(dim=0).mean() < 0.4
