"""Pre-training: the encoder is the network's own, the decoder goes, and the regularisers do what they say."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from advbench.defenses.kernels.layers import layer_jacobians
from advbench.defenses.training.pretrained import ContractivePretraining, SparsePretraining, autoencoder_around
from advbench.zoo.architectures import gu2014
from advbench.zoo.training import Budget, Step, accuracy, train

CPU = torch.device("cpu")
STEP = Step(0, 0, 0, torch.arange(4))
BUDGET = Budget(epochs=20, batch_size=16, learning_rate=5e-3)


def images(n=4):
    return torch.rand(n, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def ae400(n_classes=3):
    return gu2014.ae400_10((1, 8, 8), n_classes)


def test_ae400_sits_in_the_autoencoder_of_the_zoo():
    model = ae400()
    around = autoencoder_around(model, (1, 8, 8), seed=0)
    published = gu2014.sparse_autoencoder((1, 8, 8))
    assert [p.shape for p in around.parameters()] == [p.shape for p in published.parameters()]
    published.load_state_dict(dict(zip(published.state_dict(), around.state_dict().values(), strict=True)))
    torch.testing.assert_close(around(images()), published(images()))
    assert around[0][1].weight is model[1].weight


def test_the_terms_of_the_first_training():
    model, x = ae400(), images()
    around = autoencoder_around(model, (1, 8, 8), seed=0)
    code = around[0](x)
    error = sum(((around(x) - x) ** 2).sum(dim=(1, 2, 3))) / 4
    sparse = SparsePretraining(sparsity=0.5).reconstruction(around, x, torch.zeros(4), STEP)
    torch.testing.assert_close(sparse["reconstruction"], error)
    torch.testing.assert_close(sparse["sparsity"], 0.5 * code.sum(dim=1).mean())
    contractive = ContractivePretraining(contraction=0.5).reconstruction(around, x, torch.zeros(4), STEP)
    weight = model[1].weight
    closed = ((code * (1 - code)) ** 2 @ weight.square().sum(dim=1)).mean()  # Rifai et al. 2011, equation 7
    torch.testing.assert_close(contractive["reconstruction"], error)
    torch.testing.assert_close(contractive["contraction"], 0.5 * closed)


def test_the_classifier_has_weight_decay_where_it_is_asked_for():
    model, x, y = ae400(), images(), torch.tensor([0, 1, 2, 0])
    plain, decayed = (SparsePretraining(weight_decay=value).objective(model, x, y, STEP) for value in (0.0, 0.25))
    assert list(plain) == ["cross_entropy"]
    assert list(decayed) == ["cross_entropy", "weight_decay"]
    torch.testing.assert_close(decayed["cross_entropy"], plain["cross_entropy"])
    squares = sum(float(module.weight.detach().square().sum()) for module in model if isinstance(module, nn.Linear))
    assert decayed["weight_decay"].item() == pytest.approx(0.25 * squares, rel=1e-5)
    held_out = SparsePretraining(weight_decay=0.25).objective(model, x, y, dataclasses.replace(STEP, training=False))
    assert list(held_out) == ["cross_entropy"]


@pytest.mark.parametrize("make", [SparsePretraining, ContractivePretraining])
def test_a_frozen_encoder_reconstructs_and_is_as_pretrained(lab, make):
    defense, data = make(frozen=True), lab.data
    fitted = defense.fit(ae400, data, inputs={}, seed=0, device=CPU, budget=BUDGET).model
    with torch.random.fork_rng(devices=[]):
        model = defense.build(ae400, data, {}).model
    assert all(parameter.requires_grad for parameter in fitted.parameters())
    assert accuracy(fitted, data.validation) > 0.9
    tuned = dataclasses.replace(defense, frozen=False).fit(ae400, data, inputs={}, seed=0, device=CPU, budget=BUDGET).model
    assert not torch.equal(fitted[1].weight, tuned[1].weight)
    assert list(model.state_dict()) == list(fitted.state_dict())
    # A decoder alone, trained on the frozen code, gives the images back better than their mean does.
    around = autoencoder_around(fitted, data.shape, seed=0)
    around[0].requires_grad_(False)
    train(around, defense.reconstruction, data, budget=BUDGET, seed=0, device=CPU)
    x = data.train.x
    assert (around(x) - x).square().mean() < 0.7 * (x.mean(dim=0) - x).square().mean()


def test_the_regularisers_make_the_code_sparse_and_contractive(lab):
    x = lab.data.train.x

    def fitted(defense):
        return defense.fit(ae400, lab.data, inputs={}, seed=0, device=CPU, budget=BUDGET).model

    weak, strong = (fitted(SparsePretraining(sparsity=value, frozen=True)) for value in (0.0, 1.0))
    assert strong[:3](x).mean() < 0.5 * weak[:3](x).mean()
    weak, strong = (fitted(ContractivePretraining(contraction=value, frozen=True)) for value in (0.0, 10.0))
    norms = [next(iter(layer_jacobians(model, x)[1].values())).mean() for model in (weak, strong)]
    assert norms[1] < 0.5 * norms[0]


def test_progress_runs_through_both_trainings(lab):
    seen = []
    budget = Budget(epochs=1, batch_size=16)
    arguments = {"inputs": {}, "seed": 0, "device": CPU, "budget": budget}
    SparsePretraining().fit(ae400, lab.data, **arguments, progress=lambda done, steps: seen.append((done, steps)))
    assert seen == [(done, 6) for done in range(1, 7)]


def test_rejects_what_makes_no_sense():
    with pytest.raises(ValueError, match="Expected `sparsity` >= 0, got -1"):
        SparsePretraining(sparsity=-1)
    with pytest.raises(ValueError, match="Expected `weight_decay` >= 0, got -1"):
        SparsePretraining(weight_decay=-1)
    with pytest.raises(ValueError, match="Expected `contraction` >= 0, got -1"):
        ContractivePretraining(contraction=-1)
    with pytest.raises(ValueError, match="with a hidden layer to pre-train, got Linear of one layer"):
        autoencoder_around(nn.Linear(4, 2), (1, 2, 2), seed=0)
