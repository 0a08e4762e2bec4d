"""Noise at every layer: where it enters, how strong it is, whose it is, and that it is gone afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.defenses.inference.layer_noise import LayerNoise, NoisyLayers, hidden_ends
from advbench.defenses.inference.noise import Noisy
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo import ARCHITECTURES


class Keep(nn.Module):
    """The identity, with a record of what it is given."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append(x.detach())
        return x


def identity_net(width: int = 64, scale: float = 1.0) -> nn.Sequential:
    """Three affine layers that keep what they get, with ReLU behind the first two; what each affine map gets is kept."""

    def eye() -> nn.Linear:
        layer = nn.Linear(width, width, bias=False)
        with torch.no_grad():
            layer.weight.copy_(scale * torch.eye(width))
        return layer

    return nn.Sequential(nn.Flatten(), Keep(), eye(), nn.ReLU(), Keep(), eye(), nn.ReLU(), Keep(), eye())


def stream(n: int, seed: int = 0) -> ExampleRNG:
    return ExampleRNG.make(seed, "oracle", torch.arange(n))


def seen(model: nn.Sequential) -> list[Tensor]:
    found = [layer.seen.pop() for layer in model if isinstance(layer, Keep)]
    assert not any(layer.seen for layer in model if isinstance(layer, Keep))  # one forward for all passes
    return found


def test_noise_enters_at_the_image_and_behind_every_hidden_layer_but_not_behind_the_last():
    model = identity_net(400)
    x = torch.full((50, 1, 20, 20), 5.0)
    logits = NoisyLayers(model, sigma=0.1, passes=4, stochastic=False)(x, stream(50))
    variances = [float((h - 5).var()) for h in seen(model)]
    assert variances == pytest.approx([0.01, 0.01, 0.02], rel=0.02)  # hooks run behind what records: the next map sees more
    last = identity_net(400)
    last[-1].register_forward_hook(lambda _, inputs, __: variances.append(float((inputs[0].detach() - 5).var())))
    assert logits.shape == (50, 400)
    NoisyLayers(last, sigma=0.1, passes=4, stochastic=False)(x, stream(50))
    assert variances[-1] == pytest.approx(0.03, rel=0.02)


def test_hidden_noise_is_added_behind_the_nonlinearity():
    model = identity_net(scale=-1.0)  # ReLU cuts all: what is left behind it is noise, half of it negative
    given = []
    model[5].register_forward_hook(lambda _, inputs, __: given.append(inputs[0].detach()))
    NoisyLayers(model, sigma=0.1, passes=20, stochastic=False)(torch.full((50, 1, 8, 8), 5.0), stream(50))
    assert float((given[0] < 0).float().mean()) == pytest.approx(0.5, abs=0.01)
    assert float(given[0].std()) == pytest.approx(0.1, rel=0.02)


def answers(x: Tensor, rng: ExampleRNG, passes: int = 3) -> Tensor:
    return NoisyLayers(identity_net(), sigma=0.3, passes=passes, stochastic=False)(x, rng)


def test_noise_belongs_to_the_example():
    x, rng, rows = torch.rand(6, 1, 8, 8), stream(6), torch.tensor([4, 0, 5])
    together = answers(x, rng)
    torch.testing.assert_close(answers(x[rows], rng.select(rows)), together[rows])
    assert not torch.allclose(answers(x, rng.at(1)), together)
    assert not torch.allclose(answers(x, stream(6, seed=1)), together)


def test_layers_passes_and_examples_share_no_noise():
    model = identity_net()
    given: list[Tensor] = []
    for layer in model:
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(lambda _, inputs, output: given.append((inputs[0].detach(), output.detach())))
    NoisyLayers(model, sigma=1.0, passes=4, stochastic=False)(torch.full((5, 1, 8, 8), 9.0), stream(5))
    noises = torch.cat([given[0][0] - 9, given[1][0] - given[0][1], given[2][0] - given[1][1]])
    assert torch.unique((noises * 1e3).round(), dim=0).shape == (3 * 4 * 5, 64)
    assert float(noises.T.corrcoef().fill_diagonal_(0).abs().max()) < 0.6  # 60 numbers a pixel


def test_without_noise_it_is_the_base():
    model = identity_net()
    x = torch.rand(3, 1, 8, 8)
    found = NoisyLayers(model, sigma=0.0, passes=2, stochastic=False)(x, stream(3))
    torch.testing.assert_close(found, x.flatten(1).log_softmax(dim=1))


def test_the_hooks_are_gone_afterwards_even_after_a_failure():
    model = identity_net()
    noisy = NoisyLayers(model, sigma=1.0, passes=2, stochastic=False)
    noisy(torch.rand(2, 1, 8, 8), stream(2))
    with pytest.raises(RuntimeError):
        noisy(torch.rand(2, 1, 9, 9), stream(2))
    x = torch.rand(2, 1, 8, 8)
    torch.testing.assert_close(model(x), x.flatten(1))
    assert not any(module._forward_hooks for module in model.modules())


def test_behind_another_test_time_defense_the_classifier_has_the_noise(lab):
    inner = identity_net()
    outer = Noisy(inner, sigma=0.2, passes=2, stochastic=False)
    both = NoisyLayers(outer, sigma=0.1, passes=3, stochastic=True)
    assert hidden_ends(both) == hidden_ends(inner)
    given: list[Tensor] = []
    inner[2].register_forward_hook(lambda _, inputs, __: given.append(inputs[0].detach()))
    both(torch.full((40, 1, 8, 8), 5.0), stream(40))
    assert len(given[0]) == 40 * 3 * 2
    assert float(given[0].var()) == pytest.approx(0.01 + 0.04, rel=0.05)
    split = lab.data.validation
    for base in ("gaussian-blur", "input-noise(passes=2)", "bit-depth"):
        stacked = lab.fitted(f"layer-noise(passes=3, base={base!r})")
        assert lab.logits(stacked, split.x, split.index).isfinite().all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_reaches_the_hidden_layers_of_the_zoo(name):
    model = registry.build_network(Spec(name), (3 if "cifar" in name else 1, 32, 32), 10)
    affine = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(hidden_ends(model)) == len(affine) - 1


def test_a_network_that_hides_its_layers_is_refused():
    with pytest.raises(ValueError, match=r"Expected an nn\.Sequential, whose hidden layers noise can reach, got Keep"):
        NoisyLayers(Keep(), sigma=0.1, passes=1, stochastic=False)


def test_its_gradient_is_that_of_the_pass_with_the_same_noise(lab):
    """Against central differences in float64: with the rng held, the averaged prediction is a smooth function."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    noisy = NoisyLayers(model, sigma=0.3, passes=4, stochastic=False)
    x = torch.rand(2, 1, 2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda images: noisy(images, stream(2)), x)


def test_surrogates_are_the_noisy_model_and_the_bare_base(lab):
    base, noisy, split = lab.fitted("none"), lab.fitted("layer-noise"), lab.data.validation
    assert list(noisy.surrogates) == ["faithful", "base"]
    assert noisy.surrogates["faithful"].model is noisy.model
    torch.testing.assert_close(noisy.surrogates["base"].model(split.x), base.model(split.x))
    with WhiteBox(noisy.model, stream(len(split)), stochastic=True, draws=2) as access:
        found = access.loss_gradient(split.x, Untargeted(split.y), cross_entropy)
    assert found.gradient.abs().amax(dim=(1, 2, 3)).gt(0).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"sigma": -1.0}, "Expected `sigma` >= 0, got -1.0"), ({"passes": 0}, "Expected `passes` >= 1, got 0")],
)
def test_rejects_what_makes_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        LayerNoise(**arguments)
