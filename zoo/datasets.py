"""How long to train on each data set."""

from __future__ import annotations

from advbench.zoo import whitened
from advbench.zoo.training import Budget

_BUDGETS = {
    "digits": Budget(epochs=20, batch_size=64, learning_rate=3e-3),
    "mnist": Budget(epochs=5, learning_rate=2e-3),
    "fashion-mnist": Budget(epochs=10, learning_rate=2e-3),
    "kmnist": Budget(epochs=10, learning_rate=2e-3),
}
"""How long to train, by data set; `_OTHER` for the rest.

That of digits was chosen on its 143 validation images, for gu2014/n200-200-10 and batches of 64, from 10, 20, 30 and 50
epochs at rates of 1e-3, 3e-3 and 1e-2, with two training seeds. The score is the mean of two accuracies: that of `none` on
clean images, and that of `pgd-linf`, trained at 1/8, under PGD with 40 steps at 1/8. The rule: of the budgets whose score
is within a standard error (binomial, 0.021) of the best, the fewest epochs, then the smallest rate. The best score is
0.802, of 30 epochs at 1e-2; 20 epochs at 3e-3 have 0.788; the best of 10 epochs is 0.759.
"""
_OTHER = Budget(epochs=30)


def default_budget(name: str) -> Budget:
    """How long models train on a data set where the user does not say, by the data set's name, whitened or not."""
    return _BUDGETS.get(name.removeprefix(whitened.PREFIX), _OTHER)
