"""What every registered defense keeps to."""

from __future__ import annotations

import copy
import dataclasses
import inspect

import pytest
import torch
from torch import Tensor

from advbench.attacks.rng import ExampleRNG
from advbench.attacks.threat import Untargeted, cross_entropy
from advbench.defenses import DEFENSES
from advbench.defenses.defended import Defense
from advbench.registry import registry
from advbench.zoo import checkpoints

every_defense = pytest.mark.parametrize("name", DEFENSES)


@every_defense
def test_is_a_frozen_dataclass_that_names_its_source(name):
    make = registry.defenses.factory(name)
    defense = make()
    assert isinstance(defense, Defense)
    assert type(defense).__dataclass_params__.frozen
    assert all(field.kw_only for field in dataclasses.fields(defense))
    first_line = inspect.getdoc(make).partition("\n")[0]
    assert name == "none" or "arXiv:" in first_line or "doi:" in first_line


@every_defense
def test_answers_with_finite_logits_and_never_sees_the_test_split(lab, name):
    split = lab.data.validation
    logits = lab.logits(lab.fitted(name), split.x, split.index)
    assert lab.data.test.x.isnan().all()
    assert logits.shape == (len(split), lab.data.n_classes)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()


@every_defense
def test_works_with_two_classes(lab, name):
    data = lab.make_data(n_classes=2)
    logits = lab.logits(lab.fit(name, data), data.validation.x, data.validation.index)
    assert logits.shape == (len(data.validation), 2)


@every_defense
def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone(lab, name):
    before = torch.get_rng_state()
    again = lab.fit(name).modules().state_dict()
    assert torch.equal(before, torch.get_rng_state())
    first = lab.fitted(name).modules().state_dict()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)


@every_defense
def test_a_checkpoint_loads_into_the_built_structure(lab, name, tmp_path):
    split, fitted, built = lab.data.validation, lab.fitted(name), lab.build(name)
    assert built.stochastic == fitted.stochastic
    assert list(built.surrogates) == list(fitted.surrogates)
    checkpoints.save(tmp_path / "weights.safetensors", fitted.modules(), {})
    checkpoints.load(tmp_path / "weights.safetensors", built.modules())
    assert torch.equal(lab.logits(built, split.x, split.index), lab.logits(fitted, split.x, split.index))


@every_defense
def test_takes_an_rng_exactly_where_it_is_stochastic(lab, name):
    defended, split = lab.fitted(name), lab.data.validation
    first = lab.logits(defended, split.x, split.index)
    assert torch.equal(first, lab.logits(defended, split.x, split.index))
    assert defended.stochastic != torch.equal(first, lab.logits(defended, split.x, split.index, draw=1))
    if defended.stochastic:
        with pytest.raises((TypeError, ValueError)):
            defended.model(split.x)


@every_defense
def test_an_answer_depends_on_the_example_alone(lab, name):
    defended, split = lab.fitted(name), lab.data.validation
    together = lab.logits(defended, split.x, split.index)
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    shuffled = lab.logits(defended, split.x[order], split.index[order])
    torch.testing.assert_close(shuffled, together[order])
    alone = torch.cat([lab.logits(defended, split.x[[i]], split.index[[i]]) for i in range(len(split))])
    torch.testing.assert_close(alone, together)


@every_defense
def test_every_surrogate_has_a_gradient_in_the_image(lab, name):
    defended, split = lab.fitted(name), lab.data.validation
    for surrogate in defended.surrogates.values():
        surrogate.model.eval()
        x = split.x.clone().requires_grad_()
        rng = ExampleRNG.make(0, "attack", split.index)
        logits = surrogate.model(x, rng) if surrogate.stochastic else surrogate.model(x)
        (gradient,) = torch.autograd.grad(cross_entropy(logits, Untargeted(split.y)).sum(), x)
        assert gradient.isfinite().all()
        assert gradient.abs().amax() > 0


@every_defense
def test_answers_in_the_precision_of_its_input(lab, name):
    defended, split = lab.fitted(name), lab.data.validation
    single = lab.logits(defended, split.x, split.index)
    double = dataclasses.replace(defended, model=copy.deepcopy(defended.model).double())
    logits: Tensor = lab.logits(double, split.x.double(), split.index)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits.float(), single, atol=1e-4, rtol=1e-4)


@every_defense
def test_asking_leaves_the_model_as_it_was(lab, name):
    defended, split = lab.fitted(name), lab.data.validation
    x, state = split.x.clone(), copy.deepcopy(defended.modules().state_dict())
    lab.logits(defended, split.x, split.index)
    assert torch.equal(x, split.x)
    assert all(torch.equal(state[key], value) for key, value in defended.modules().state_dict().items())
