"""One changed import: the interfaces of AutoAttack and of RobustBench, answered by this harness.

    from advbench.compat import AutoAttack     # in place of: from autoattack import AutoAttack
    from advbench.compat import benchmark      # in place of: from robustbench import benchmark

What is computed is advbench's own: `AutoAttack` runs advbench's implementations of the attacks that it is asked for, every
image that comes back is verified, finished blocks of work are kept, and `flags` say where a number is an upper bound. See
`AutoAttack` for what runs exactly, and for what cannot be honoured.
"""

from __future__ import annotations

from advbench.compat.autoattack import AutoAttackInterface as AutoAttack
from advbench.compat.robustbench import benchmark, clean_accuracy, load_cifar10, load_cifar100

__all__ = ["AutoAttack", "benchmark", "clean_accuracy", "load_cifar10", "load_cifar100"]
