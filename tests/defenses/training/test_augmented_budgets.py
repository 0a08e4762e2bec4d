"""Defenses with a `fit` of their own train under an augmentation too, on other images than without one."""

import pytest
import torch

from advbench.defenses.training.deep_contractive import DeepContractive
from advbench.defenses.training.pretrained import SparsePretraining
from advbench.registry import registry
from advbench.registry.specs import Spec
from advbench.zoo.training import Budget


@pytest.mark.parametrize(
    "defense", [DeepContractive(coefficient=1e-3), SparsePretraining()], ids=lambda one: type(one).__name__
)
def test_a_defense_trains_under_an_augmentation(defense):
    data = registry.load_dataset("digits")

    def weights(augmentation):
        budget = Budget(epochs=1, train_examples=64, augmentation=augmentation)
        build = lambda: registry.build_network(Spec("gu2014/n100-100-10"), data.shape, data.n_classes)  # noqa: E731
        fitted = defense.fit(build, data, inputs={}, seed=0, device=torch.device("cpu"), budget=budget)
        return fitted.model[1].weight

    augmented = weights("elastic")
    assert augmented.isfinite().all()
    assert torch.equal(augmented, weights("elastic"))
    assert not torch.equal(augmented, weights("none"))
