"""FGSM by gradients in training mode, against gradients worked out by hand."""

from __future__ import annotations

import torch
from torch import nn

from advbench.reproduction.training_mode import gradient_signs


def _data(n=12, d=6, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 1, 2, d // 2, generator=generator), torch.randint(0, 3, (n,), generator=generator)


def test_without_dropout_and_batch_norm_it_is_fgsm():
    x, y = _data()
    model = nn.Sequential(nn.Flatten(), nn.Linear(6, 3)).eval()
    weight = model[1].weight.detach().double()
    shares = torch.softmax(x.flatten(1).double() @ weight.T + model[1].bias.detach().double(), dim=1)
    expected = (shares - nn.functional.one_hot(y, 3)) @ weight  # the gradient of cross-entropy through a linear layer
    assert torch.equal(gradient_signs(model, x, y, seed=0, batch=5).flatten(1), expected.sign().float())


def test_batch_norm_takes_the_statistics_of_the_batch_and_keeps_its_own():
    x, y = _data()
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(6, affine=False, eps=1e-5), nn.Linear(6, 3)).eval()
    model[1].running_mean.fill_(3.0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = gradient_signs(model, x, y, seed=0, batch=6)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training

    expected = []
    for images, labels in zip(x.split(6), y.split(6), strict=True):  # d loss / d x of x -> (x - mean) / sqrt(var + eps)
        flat = images.flatten(1).double()
        scale = (flat.var(dim=0, unbiased=False) + 1e-5).sqrt()
        normed = (flat - flat.mean(dim=0)) / scale
        weight = model[2].weight.detach().double()
        shares = torch.softmax(normed @ weight.T + model[2].bias.detach().double(), dim=1)
        outer = (shares - nn.functional.one_hot(labels, 3)) @ weight
        inner = outer - outer.mean(dim=0) - normed * (outer * normed).mean(dim=0)
        expected.append((inner / scale).sign().float())
    assert torch.equal(found.flatten(1), torch.cat(expected))


def test_dropout_is_drawn_by_the_seed():
    x, y = _data()
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(6, 3)).eval()
    first, again, other = (gradient_signs(model, x, y, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    zeros = float((first == 0).float().mean())
    assert 0.2 < zeros < 0.8  # a dropped input has no gradient
