"""A live model in several worker processes: numbers of one worker, sent once, and left alone where it cannot be sent."""

from __future__ import annotations

import os
import sys
import threading
import types

import numpy as np
import pytest
import torch
from torch import nn

import advbench

N = 48


@pytest.fixture(autouse=True)
def _own_cache(cache):
    """Compute batches are remembered in a cache of the test's own."""


def images():
    generator = torch.Generator().manual_seed(4)
    x = torch.rand(N, 1, 6, 6, generator=generator)
    return x, torch.randint(3, (N,), generator=generator)


def network(noise=0.0, folder=None, lock=None):
    """A net that a process can be sent as code. folder: where each process that has it says so when it is asked."""

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.layers = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(128, 3))
            self.lock = lock
            self.unpickled = 0

        def __setstate__(self, state):
            super().__setstate__(state)
            self.unpickled = 1
            if folder is not None:
                with (folder / f"received {os.getpid()}").open("a") as file:
                    file.write("x")

        def forward(self, x):
            assert threading.current_thread() is threading.main_thread()
            if folder is not None:
                (folder / f"asked {os.getpid()}").touch()
            return self.layers(x + noise * torch.randn_like(x) if noise else x)

    return Network()


def outcomes(result):
    """All per-example outcomes and all counts of a result, by attack."""
    assert not result.missing
    return {
        record.attack["name"]: (
            record.counts,
            {name: getattr(examples, name) for name in ("clean_correct", "report_correct", "distance_l2", "distance_linf")},
        )
        for record, examples in result.cells
    }


@pytest.mark.parametrize("noise", [0.0, 0.05])
def test_the_numbers_are_those_of_one_worker(noise, tmp_path):
    """Each attack is cut into six blocks."""
    x, y = images()
    given = {"attack": "pgd(steps=5),fmn(steps=10)", "epsilon": 0.1, "batch": 8}
    given |= {"stochastic": noise > 0, "draws": 3 if noise else None}
    one = advbench.evaluate(network(noise), x, y, **given)
    two = advbench.evaluate(network(noise, tmp_path), x, y, **given, jobs=2)
    assert two.notes == one.notes
    ours, theirs = outcomes(one), outcomes(two)
    assert ours.keys() == theirs.keys() == {"pgd", "fmn"}
    for attack, (counts, values) in ours.items():
        assert theirs[attack][0] == counts
        for name, value in values.items():
            np.testing.assert_array_equal(theirs[attack][1][name], value, err_msg=f"{attack} {name}")
    asked = {path.name.split()[1] for path in tmp_path.glob("asked *")} - {str(os.getpid())}
    received = {path.name.split()[1]: path.read_text() for path in tmp_path.glob("received *")}
    assert len(asked) == 2
    assert asked <= set(received)
    # Once for the run; a worker has had it before if it was the one that tried whether it can be sent at all.
    assert sorted(received.values()) == ["x", "xx"]


def of_a_lost_module():
    """A model whose class is of a module that other processes cannot import."""
    module = types.ModuleType("advbench_test_lost")
    exec("from torch import nn\nclass Layer(nn.Linear):\n    pass", module.__dict__)  # noqa: S102
    sys.modules[module.__name__] = module
    return nn.Sequential(nn.Flatten(), module.Layer(36, 3))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: network(lock=threading.Lock()), "TypeError: cannot pickle '_thread.lock' object"),
        (of_a_lost_module, "ModuleNotFoundError"),
        (lambda: forgetful(), "a copy of it answers otherwise"),
    ],
)
def test_a_model_that_cannot_be_sent_is_asked_by_one_worker_alone_and_the_result_says_so(model, why):
    x, y = images()
    made = model()
    two = advbench.evaluate(made, x, y, attack="fgsm", epsilon=0.1, batch=8, jobs=2)
    one = advbench.evaluate(made, x, y, attack="fgsm", epsilon=0.1, batch=8)
    (note,) = set(two.notes) - set(one.notes)
    assert note.startswith("The model cannot be sent to other processes (")
    assert why in note
    assert note.endswith("): one worker has done everything")
    assert two.robust.value == one.robust.value
    assert str(note) in str(two)


def forgetful():
    """A model that is made anew where it is unpickled."""

    class Forgetful(nn.Module):
        def __init__(self, scale=2.0):
            super().__init__()
            self.scale, self.layer = scale, nn.Linear(36, 3)

        def forward(self, x):
            return self.layer(x.flatten(1)) * self.scale

        def __reduce__(self):
            return type(self), ()

    torch.manual_seed(1)
    return Forgetful(3.0)


def test_the_model_comes_back_as_it_was():
    model, (x, y) = network().train(), images()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    advbench.evaluate(model, x, y, attack="fgsm", epsilon=0.1, batch=8, jobs=2)
    assert model.training
    assert model.unpickled == 0
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_workers_are_one_clear_line():
    x, y = images()
    with pytest.raises(ValueError, match=r"^`jobs`"):
        advbench.evaluate(network(), x, y, attack="fgsm", epsilon=0.1, batch=8, jobs=0)
