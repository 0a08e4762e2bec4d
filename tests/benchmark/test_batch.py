"""The compute batch: how far the doubling goes, with passes of known cost and with a clock of our own."""

from __future__ import annotations

import json
import math
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from advbench.clocks import Measured
from advbench.defenses.defended import Defended
from advbench.plan import compute_batch as batches
from advbench.plan.compute_batch import Batches, Ladder, Pass, compute_batch, fastest

CPU = Ladder(1, 32, 512, 2**30, 8)


class Machine:
    """Passes that take `start` seconds and `each` more for every image; memory likewise. asked: the batches, in order."""

    def __init__(self, start=0.0, each=1e-4, *, size=0.0, full=math.inf):
        self.start, self.each, self.size, self.full = start, each, size, full
        self.asked = []

    def __call__(self, batch):
        self.asked.append(batch)
        if batch > self.full:
            raise torch.OutOfMemoryError
        return Pass(self.start + self.each * batch, int(5e8 + self.size * batch))


@pytest.mark.parametrize(
    ("machine", "expected", "divisible", "last"),
    [
        (Machine(each=1e-4), 32, 32, 512),  # no larger batch is any faster
        (Machine(start=2e-3, each=2e-5), 512, 512, 512),  # 256 have 0.86 of its throughput, in 7 ms
        (Machine(start=2e-2, each=2e-4), 512, 256, 512),  # the same in 71 ms
        (Machine(start=0.02, each=1e-4), 512, 512, 512),  # 256 have 0.78 of its throughput
        (Machine(start=0.005, each=1e-3), 128, 32, 512),  # within 5% of the best: 1000 / (1 + 5 / n) images a second
        (Machine(each=0.011), 32, 32, 128),  # 128 take more than a second
        (Machine(each=0.05), 32, 32, 32),
        (Machine(start=0.4, each=0.05), 16, 16, 16),
        (Machine(each=90.0), 1, 1, 1),  # one look at a slow purifier
    ],
)
def test_batches_double_while_passes_are_short(machine, expected, divisible, last):
    assert fastest(machine, CPU) == Batches(expected, divisible)
    assert machine.asked == [2**i for i in range(int(math.log2(last)) + 1)]


def test_no_batch_is_tried_that_would_take_too_much_memory():
    machine = Machine(start=0.02, each=1e-4, size=2**22)
    assert fastest(machine, CPU).fastest == 256
    assert max(machine.asked) * machine.size <= CPU.memory
    assert fastest(Machine(start=0.02, each=1e-4, size=2**28), CPU).fastest == 4


def test_what_a_device_has_no_memory_for_is_not_taken():
    assert fastest(Machine(start=0.02, each=1e-4, full=100), CPU).fastest == 64
    gpu = Ladder(256, 256, 8192, math.inf, 4)
    machine = Machine(start=0.02, each=1e-4, full=50)
    assert fastest(machine, gpu).fastest == 32
    assert machine.asked == [256, 128, 64, 32]
    assert fastest(Machine(full=0), gpu) == Batches(1, 1)


def test_hiccups_on_few_images_do_not_end_the_doubling():
    def measured(batch):
        return Pass(0.5 if batch == 4 else 0.01, 0)

    assert fastest(measured, CPU).fastest == 512


class Slow(nn.Module):
    """A linear model that takes so many seconds for each image of each forward, and as many for its gradient."""

    def __init__(self, seconds):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.seconds, self.now, self.seen = seconds, 0.0, []

    def forward(self, x):
        self.seen.append(len(x))
        self.now += self.seconds * len(x)
        return self.linear(x.flatten(1))


@pytest.mark.parametrize(("seconds", "expected", "forwards"), [(30.0, 1, [1]), (0.3, 1, [1, 1, 1, 2, 4]), (1e-3, 32, None)])
def test_a_slow_model_is_looked_at_once(seconds, expected, forwards, tmp_path, monkeypatch):
    model = Slow(seconds)

    @contextmanager
    def clock(_device):
        measured, start = Measured(), model.now
        yield measured
        measured.seconds = model.now - start

    monkeypatch.setattr(batches, "stopwatch", clock)
    memory = tmp_path / "compute-batch.json"
    for _ in range(2):  # the second time from memory
        found = compute_batch(
            Defended(model), (1, 2, 2), images=10**4, draws=1, device=torch.device("cpu"), memory=memory, measure=True
        )
        assert found == expected
    assert forwards is None or model.seen == forwards
    assert list(json.loads(memory.read_text()).values()) == [[expected, expected]]


NET = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))


def asked(memory, **options):
    return compute_batch(
        Defended(NET),
        (1, 2, 2),
        draws=1,
        device=torch.device("cpu"),
        memory=memory,
        **{"images": 10**4, "measure": True} | options,
    )


@pytest.mark.parametrize(
    "kept",
    [0, -5, None, 64, [64, 0], [-5, -5], [64], [32, 64], ["64", "64"], [64.0, 64], [True, True], [10**12, 1], [513, 8], {}],
)
def test_a_batch_that_makes_no_sense_is_measured_again(kept, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_measure", lambda *_: Batches(64, 32))
    memory = tmp_path / "compute-batch.json"
    assert asked(memory) == 64
    (name,) = json.loads(memory.read_text())
    memory.write_text(json.dumps({name: kept, "another one": [8192, 512], "a third one": None}))
    monkeypatch.setattr(batches, "_measure", lambda *_: Batches(32, 32))
    assert asked(memory, measure=False) == batches.DEFAULT_BATCH
    assert asked(memory) == 32
    assert json.loads(memory.read_text()) == {name: [32, 32], "another one": [8192, 512]}


@pytest.mark.parametrize("content", [b"", b"null", b"[]", b"7", b'{"a": 1', b"\xff\xfe\x00", b"[" * 100_000, b"NaN"])
def test_a_file_that_holds_no_batches_is_written_anew(content, tmp_path, monkeypatch):
    monkeypatch.setattr(batches, "_measure", lambda *_: Batches(64, 32))
    memory = tmp_path / "compute-batch.json"
    memory.write_bytes(content)
    assert asked(memory) == 64
    assert list(json.loads(memory.read_text()).values()) == [[64, 32]]


def test_of_several_starts_at_once_the_first_to_write_decides(tmp_path, monkeypatch):
    """Each measures another batch while none is known, and they write in any order."""
    together, numbers, found = threading.Barrier(4, timeout=60), iter((32, 64, 128, 256)), []

    def measured(*_):
        number = next(numbers)
        together.wait()
        return Batches(number, number)

    monkeypatch.setattr(batches, "_measure", measured)
    memory = tmp_path / "new" / "compute-batch.json"
    starts = [threading.Thread(target=lambda: found.append(asked(memory))) for _ in range(4)]
    for start in starts:
        start.start()
    for start in starts:
        start.join()
    assert len(found) == 4
    assert [[batch, batch] for batch in set(found)] == list(json.loads(memory.read_text()).values())
    assert len(set(found)) == 1


@pytest.mark.parametrize(
    ("images", "parts", "expected"),
    [
        (10**4, 8, 256),  # the fastest
        (1025, 8, 128),  # 128 eights and one more
        (1024, 8, 64),  # 128 are not below an eighth
        (500, 8, 32),
        (100, 8, 16),  # no smaller than four fifths of the throughput allow
        (1, 8, 16),
        (1025, 4, 256),
        (1024, 4, 128),
    ],
)
def test_the_batch_leaves_something_to_divide(images, parts, expected, tmp_path, monkeypatch):
    assert Batches(256, 16).of(images, parts) == expected
    assert Batches(512, 512).of(images, parts) == 512, "a tiny model is not worth dividing"
    if parts == 8:
        monkeypatch.setattr(batches, "_measure", lambda *_: Batches(256, 16))
        assert asked(tmp_path / "compute-batch.json", images=images) == expected
