"""The closed forms of layer Jacobians against autograd, in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from advbench.defenses.kernels.jacobian import (
    Interior,
    convolution_rows,
    dense_rows,
    masked_norms,
    softmax_norms,
    weighted_norms,
)
from advbench.defenses.kernels.layers import Layer, has_closed_form, layer_jacobians, layers_of
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo import ARCHITECTURES


def by_autograd(layer, h, *, softmax=False):
    """Squared norms of the layer's Jacobian at each example of `h`, from the whole Jacobian."""

    def single(example):
        z = layer(example.unsqueeze(0)).squeeze(0)
        return z.softmax(dim=0) if softmax else z

    jacobians = torch.stack([torch.func.jacrev(single)(example) for example in h])
    return jacobians.flatten(1).square().sum(dim=1)


def reference(model, x, output="softmax"):
    """What `layer_jacobians` says, one layer after the other; the model is in evaluation mode."""
    cut = layers_of(model)
    h, norms = cut.prepare(x), {}
    for layer in cut.layers:
        norms[layer.name] = by_autograd(layer, h, softmax=output == "softmax" and layer is cut.layers[-1])
        h = layer(h)
    return norms


def assert_equals_autograd(model, x, output="logits"):
    logits, norms = layer_jacobians(model, x, output=output)
    expected = reference(model, x, output)
    assert torch.equal(logits, model(x))
    assert list(norms) == list(expected)
    for name, values in norms.items():
        torch.testing.assert_close(values, expected[name], rtol=1e-10, atol=1e-10)


def randomised(model, seed=0):
    """The model in float64 and evaluation mode, every parameter and statistic drawn anew."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(generator=generator)
        for name, buffer in model.named_buffers():
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 2, generator=generator)
            elif name.endswith("running_mean"):
                buffer.normal_(generator=generator)
    return model


def images(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", [nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh])
@pytest.mark.parametrize("output", ["softmax", "logits"])
def test_dense_layers(kind, output):
    model = randomised(nn.Sequential(nn.Flatten(), nn.Linear(12, 7), kind(), nn.Linear(7, 5)))
    assert_equals_autograd(model, images(4, 3, 2, 2), output)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(st.data())
def test_convolutions_of_every_geometry(data):
    draw = data.draw
    groups = draw(st.sampled_from([1, 2]))
    kernel, dilation = draw(st.tuples(*[st.integers(1, 4)] * 2)), draw(st.tuples(*[st.integers(1, 3)] * 2))
    stride = draw(st.tuples(*[st.integers(1, 3)] * 2))
    padding = draw(st.one_of(st.tuples(*[st.integers(0, 4)] * 2), st.just("valid"), st.just("same")))
    if padding == "same":
        stride = (1, 1)
    margin = padding if isinstance(padding, tuple) else (0, 0)
    least = [max(1, d * (k - 1) + 1 - 2 * p) for d, k, p in zip(dilation, kernel, margin, strict=True)]
    height, width = (low + draw(st.integers(0, 4)) for low in least)
    kind = draw(st.sampled_from([nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh]))
    conv = nn.Conv2d(2 * groups, 2 * groups, kernel, stride=stride, padding=padding, dilation=dilation, groups=groups)
    model = randomised(nn.Sequential(conv, kind()))
    assert_equals_autograd(model, images(2, 2 * groups, height, width))


@given(st.data())
def test_max_pooling_counts_the_winners(data):
    draw = data.draw
    window = draw(st.integers(1, 3))
    pool = nn.MaxPool2d(
        window,
        stride=draw(st.integers(1, 3)),
        padding=draw(st.integers(0, window // 2)),
        ceil_mode=draw(st.booleans()),
    )
    kind = draw(st.sampled_from([nn.Identity, nn.ReLU, nn.Sigmoid, nn.Tanh]))
    order = draw(st.sampled_from([(kind(), pool), (pool, kind()), (kind(), nn.BatchNorm2d(3), pool)]))
    model = randomised(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), *order))
    assert_equals_autograd(model, images(3, 2, 6, 7))


def test_two_poolings_compose_their_winners():
    layers = (nn.Conv2d(1, 2, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2, stride=1), nn.MaxPool2d(3), nn.Sigmoid())
    assert_equals_autograd(randomised(nn.Sequential(*layers)), images(2, 1, 8, 8))


def test_exact_ties_in_a_pool_have_one_winner():
    model = randomised(nn.Sequential(nn.Conv2d(1, 2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)))
    with torch.no_grad():
        model[0].bias.fill_(1.0)
    assert_equals_autograd(model, torch.zeros(2, 1, 6, 6, dtype=torch.float64))


@pytest.mark.parametrize("output", ["softmax", "logits"])
def test_batch_norm_before_and_after_the_nonlinearity(output):
    model = nn.Sequential(
        nn.Conv2d(2, 3, 3, padding=1),
        nn.BatchNorm2d(3),
        nn.ReLU(),
        nn.BatchNorm2d(3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(27, 6),
        nn.BatchNorm1d(6, affine=False),
        nn.Tanh(),
        nn.Dropout(0.5),
        nn.Linear(6, 4),
        nn.BatchNorm1d(4),
    )
    assert_equals_autograd(randomised(model), images(3, 2, 6, 6), output)


@pytest.mark.parametrize("track", [True, False])
def test_the_statistics_of_a_training_batch_are_constants(track):
    conv, norm = nn.Conv2d(1, 3, 3, padding=1), nn.BatchNorm2d(3, track_running_stats=track)
    model = randomised(nn.Sequential(conv, norm, nn.ReLU()))
    model.train()
    x = images(5, 1, 4, 4)
    (norms,) = layer_jacobians(model, x, output="logits")[1].values()
    z = conv(x)
    variance, mean = torch.var_mean(z.detach(), dim=(0, 2, 3), correction=0)

    def frozen(h):
        return nn.functional.batch_norm(conv(h), mean, variance, norm.weight, norm.bias).relu()

    torch.testing.assert_close(norms, by_autograd(frozen, x), rtol=1e-10, atol=1e-10)


def test_runs_each_module_once_and_moves_running_statistics_once():
    def network():
        return randomised(nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Flatten(), nn.Linear(8, 3)))

    x = images(6, 1, 4, 4)
    ours, plain = network().train(), network().train()
    counts = []
    ours[0].register_forward_hook(lambda *_: counts.append(0))
    logits, _ = layer_jacobians(ours, x)
    torch.testing.assert_close(logits, plain(x), rtol=0, atol=0)
    assert len(counts) == 1
    assert all(torch.equal(a, b) for a, b in zip(ours.buffers(), plain.buffers(), strict=True))


def test_dropout_is_left_out():
    model = randomised(nn.Sequential(nn.Flatten(), nn.Linear(8, 50), nn.ReLU(), nn.Dropout(0.5)))
    x = images(3, 8)
    expected = layer_jacobians(model, x, output="logits")[1]
    model.train()
    torch.testing.assert_close(layer_jacobians(model, x, output="logits")[1], expected)


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name.startswith("gu2014")])
def test_the_networks_of_gu_and_rigazio(name):
    model = randomised(registry.build_network(Spec(name), (1, 8, 8), 4))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.1)
    x = images(2, 1, 8, 8)
    cut = layers_of(model)
    assert all(has_closed_form(layer, softmax=layer is cut.layers[-1]) for layer in cut.layers)
    assert_equals_autograd(model, x, "softmax")


def test_softmax_norms_stay_nonnegative_where_one_class_is_certain():
    weight = torch.randn(10, 50, generator=torch.Generator().manual_seed(0)) * 100
    logits = torch.eye(10) * 30
    norms = softmax_norms(weight, logits)
    assert (norms >= 0).all()
    assert norms.max() < 1e-3 * weight.square().sum()


class TestGradients:
    """Derivatives in the weights, by finite differences."""

    def test_dense_and_convolution_rows(self):
        assert torch.autograd.gradcheck(dense_rows, images(4, 3).requires_grad_())
        conv = nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2).double()

        def rows(weight):
            return torch.func.functional_call(_Rows(conv, 5, 6), {"conv.weight": weight}, ())

        assert torch.autograd.gradcheck(rows, conv.weight.detach().requires_grad_())

    def test_masks_are_locally_constant(self):
        y = images(3, 2, 5, 5).relu()
        assert torch.autograd.gradcheck(lambda rows: masked_norms(rows, y), images(2, 5, 5).square().requires_grad_())
        pooled, index = nn.functional.max_pool2d(y, 3, stride=2, return_indices=True)
        rows = images(2, 5, 5).square().requires_grad_()
        assert torch.autograd.gradcheck(lambda rows: masked_norms(rows, pooled, index), rows)

    def test_smooth_slopes_and_softmax(self):
        rows, slopes = images(2, 5, 5).square().requires_grad_(), images(3, 2, 5, 5, seed=2).square().requires_grad_()
        assert torch.autograd.gradcheck(weighted_norms, (rows, slopes))
        _, index = nn.functional.max_pool2d(slopes.detach(), 2, stride=1, return_indices=True)
        pooled = images(3, 2, 4, 4, seed=3).square().requires_grad_()
        assert torch.autograd.gradcheck(weighted_norms, (rows, pooled, index))
        assert torch.autograd.gradcheck(softmax_norms, (images(4, 6).requires_grad_(), images(3, 4).requires_grad_()))

    @pytest.mark.parametrize("kind", [nn.ReLU, nn.Sigmoid, nn.Tanh])
    def test_a_whole_network(self, kind):
        model = randomised(
            nn.Sequential(
                nn.Conv2d(1, 2, 3, padding=1), nn.BatchNorm2d(2), kind(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(8, 3)
            )
        )
        x, names = images(2, 1, 4, 4), [name for name, _ in model.named_parameters()]
        running = dict(model.named_buffers())

        def penalty(*parameters):
            values = dict(zip(names, parameters, strict=True)) | running
            return torch.func.functional_call(_Penalty(model), {f"model.{k}": v for k, v in values.items()}, (x,))

        assert torch.autograd.gradcheck(penalty, tuple(p.detach().requires_grad_() for p in model.parameters()))


class _Rows(nn.Module):
    def __init__(self, conv, *size):
        super().__init__()
        self.conv, self.size = conv, size

    def forward(self):
        return convolution_rows(self.conv, *self.size)


class _Penalty(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, x):
        return torch.stack(list(layer_jacobians(self.model, x)[1].values()))


def test_the_parts_of_a_batch_are_put_together():
    """More units than fit the buffer, and a batch that the parts do not divide."""
    y = torch.randn(7, 3, 300, 100, generator=torch.Generator().manual_seed(0)).relu().double()
    rows = images(3, 300, 100).square().requires_grad_()
    norms = masked_norms(rows, y)
    expected = ((y > 0) * rows).sum(dim=(1, 2, 3))
    torch.testing.assert_close(norms, expected)
    weights = images(7)
    (ours,) = torch.autograd.grad(norms, rows, weights)
    (plain,) = torch.autograd.grad(expected, rows, weights)
    torch.testing.assert_close(ours, plain)
    pooled, index = nn.functional.max_pool2d(y, 3, stride=2, return_indices=True)
    (ours,) = torch.autograd.grad(masked_norms(rows, pooled, index), rows, weights)
    direct = (rows.flatten(1).expand(7, -1, -1).gather(2, index.flatten(2)) * (pooled > 0).flatten(2)).sum(dim=(1, 2))
    (plain,) = torch.autograd.grad(direct, rows, weights)
    torch.testing.assert_close(ours, plain)


class TestCutting:
    """Where one layer ends and the next begins."""

    def test_nested_sequentials_are_flattened(self):
        model = nn.Sequential(
            nn.Flatten(), nn.Sequential(nn.Linear(4, 3), nn.ReLU()), nn.Sequential(nn.Sequential(nn.Linear(3, 2)))
        )
        cut = layers_of(model)
        assert [layer.name for layer in cut.layers] == ["1.0", "2.0.0"]
        assert [len(layer.modules) for layer in cut.layers] == [2, 1]
        assert [type(module) for module in cut.prepare.modules] == [nn.Flatten]

    def test_a_module_that_runs_twice_is_there_twice(self):
        relu = nn.ReLU()
        model = randomised(nn.Sequential(nn.Linear(4, 3), relu, nn.Linear(3, 3), relu, nn.Linear(3, 2)))
        assert [len(layer.modules) for layer in layers_of(model).layers] == [2, 2, 1]
        assert_equals_autograd(model, images(3, 4))

    def test_a_network_that_is_no_sequence_is_one_layer(self):
        class Net(nn.Module):
            def __init__(self):
                super().__init__()
                self.dense = nn.Linear(4, 2)

            def forward(self, x):
                return self.dense(x)

        (layer,) = layers_of(Net()).layers
        assert not has_closed_form(layer, softmax=False)

    @pytest.mark.parametrize(
        "modules",
        [
            (nn.Conv2d(1, 2, 3), nn.ReLU(), nn.AvgPool2d(2)),
            (nn.Conv2d(1, 2, 3, padding=1, padding_mode="reflect"), nn.ReLU()),
            (nn.Conv2d(1, 2, 3), nn.GELU()),
            (nn.Conv2d(1, 2, 3), nn.Flatten(), nn.BatchNorm1d(8)),
            (nn.ConvTranspose2d(1, 2, 3), nn.ReLU()),
            (nn.utils.parametrizations.weight_norm(nn.Bilinear(2, 2, 2)),),
        ],
    )
    def test_what_has_no_closed_form(self, modules):
        assert not has_closed_form(Layer("0", modules), softmax=False)

    def test_convolutions_under_softmax_have_none(self):
        assert not has_closed_form(Layer("0", (nn.Conv2d(1, 2, 3), nn.Flatten())), softmax=True)
        assert has_closed_form(Layer("0", (nn.Conv2d(1, 2, 3), nn.Flatten())), softmax=False)

    def test_rejects_what_makes_no_sense(self):
        with pytest.raises(ValueError, match="Expected a model with layers that have parameters, got none"):
            layers_of(nn.Sequential(nn.Flatten()))
        with pytest.raises(ValueError, match="Expected `output` softmax or logits, got 'probabilities'"):
            layer_jacobians(nn.Linear(2, 2), torch.zeros(1, 2), output="probabilities")


@pytest.mark.parametrize(("padding", "window", "stride"), [(0, 2, 2), (2, 3, 2), (2, 2, 1), (4, 2, 2)])
def test_the_interior_is_where_the_rows_are_alike(padding, window, stride):
    """Every window that sees one value of the rows alone lies inside, and counting there changes nothing."""
    conv, pool = randomised(nn.Conv2d(1, 2, 5, padding=padding)), nn.MaxPool2d(window, stride=stride)
    rows = convolution_rows(conv, 9, 10).detach()
    highest, lowest = pool(rows.unsqueeze(0))[0], -pool(-rows.unsqueeze(0))[0]
    alike = ((highest - lowest).abs() < 1e-9) & (
        (highest - conv.weight.square().sum(dim=(1, 2, 3)).view(-1, 1, 1)).abs() < 1e-9
    )
    inside = Interior.of(conv, 9, 10).pooled(pool)
    expected = torch.zeros_like(alike[0])
    expected[inside.top : inside.bottom, inside.left : inside.right] = True
    assert torch.equal(alike.all(dim=0), expected)
    y, index = nn.functional.max_pool2d(conv(images(5, 1, 9, 10)).relu().detach(), window, stride, return_indices=True)
    torch.testing.assert_close(masked_norms(rows, y, index, inside), masked_norms(rows, y, index), rtol=1e-12, atol=1e-12)


def test_a_small_image_has_no_interior():
    assert Interior.of(nn.Conv2d(1, 2, 5, padding=2), 4, 9) is None
    assert Interior.of(nn.Conv2d(1, 2, 5, padding=2), 6, 9).pooled(nn.MaxPool2d(3)) is None
