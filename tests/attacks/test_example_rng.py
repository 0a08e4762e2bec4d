from __future__ import annotations

import pytest
import torch

from advbench.attacks.rng import ExampleRNG, philox

ONES = 0xFFFFFFFF


def words(counter, key):
    return [int(word) for word in philox(tuple(torch.tensor(part) for part in counter), key)]


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((ONES,) * 4, (ONES,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, expected):
    assert words(counter, key) == list(expected)


@pytest.mark.parametrize("draw", ["bits", "uniform", "normal", "integers"])
def test_numbers_of_an_example_do_not_depend_on_batch_or_order(draw):
    def numbers(rng):
        return {
            "bits": lambda: rng.bits(7),
            "uniform": lambda: rng.uniform((1, 3, 3)),
            "normal": lambda: rng.normal((3, 3), torch.float64),
            "integers": lambda: rng.integers(10, (5,)),
        }[draw]()

    index = torch.tensor([5, 0, 17, 2**40, 3])
    together = numbers(ExampleRNG.make(1, "attack", index).at(4))
    order = torch.tensor([3, 1, 4, 0, 2])
    assert torch.equal(numbers(ExampleRNG.make(1, "attack", index[order]).at(4)), together[order])
    assert torch.equal(numbers(ExampleRNG.make(1, "attack", index).at(4).select(order)), together[order])
    for row in range(len(index)):
        assert torch.equal(numbers(ExampleRNG.make(1, "attack", index[row : row + 1]).at(4)), together[row : row + 1])


def test_streams_differ_by_seed_purpose_fork_draw_and_index():
    index = torch.arange(4)
    base = ExampleRNG.make(0, "attack", index)
    streams = [
        base,
        ExampleRNG.make(1, "attack", index),
        ExampleRNG.make(0, "report", index),
        base.fork("start"),
        base.fork("start", 1),
        base.at(1),
        ExampleRNG.make(0, "attack", index + 2**32),
    ]
    rows = torch.cat([stream.bits(8) for stream in streams])
    assert len(torch.unique(rows, dim=0)) == len(rows)


def test_a_longer_request_begins_with_the_shorter_one():
    rng = ExampleRNG.make(0, "attack", torch.arange(3))
    assert torch.equal(rng.bits(1001)[:, :10], rng.bits(10))


def test_draws_may_differ_between_examples():
    rng = ExampleRNG.make(0, "attack", torch.tensor([7, 7]))
    both = rng.at(torch.tensor([0, 5])).bits(4)
    assert torch.equal(both, torch.cat((rng.at(0).bits(4)[:1], rng.at(5).bits(4)[:1])))


def test_uniform_numbers_have_the_moments_of_the_unit_interval():
    numbers = ExampleRNG.make(3, "attack", torch.arange(200)).uniform((1000,), torch.float64)
    assert 0 <= numbers.min() < 1e-4
    assert 1 - 1e-4 < numbers.max() < 1
    # 2e5 numbers: four standard errors are 0.0026 for the mean, 0.0007 for the variance.
    assert abs(numbers.mean() - 1 / 2) < 0.0026
    assert abs(numbers.var() - 1 / 12) < 0.0007


def test_normal_numbers_have_the_moments_of_the_standard_normal():
    numbers = ExampleRNG.make(3, "attack", torch.arange(200)).normal((1001,), torch.float64)
    assert numbers.shape == (200, 1001)
    assert abs(numbers.mean()) < 0.009
    assert abs(numbers.var() - 1) < 0.013
    assert abs((numbers**3).mean()) < 0.04
    assert abs((numbers**4).mean() - 3) < 0.09
    left, right = numbers[:, :500].flatten(), numbers[:, 501:].flatten()  # cosines and sines of the same angles
    assert abs((left * right).mean()) < 0.013


def test_integers_are_uniform_and_follow_the_bound_of_each_example():
    rng = ExampleRNG.make(0, "attack", torch.arange(3000))
    counts = rng.integers(5, (20,)).flatten().bincount()
    assert len(counts) == 5
    assert (counts - 12_000).abs().max() < 4 * (60_000 * 0.2 * 0.8) ** 0.5
    bounds = torch.arange(1, 3001)
    assert (rng.integers(bounds) < bounds).all()
    assert (rng.integers(bounds, (4,)) < bounds.unsqueeze(1)).all()


def test_empty_batches_and_empty_shapes():
    empty = ExampleRNG.make(0, "attack", torch.arange(0))
    assert empty.uniform((3, 4)).shape == (0, 3, 4)
    assert empty.normal((3,)).shape == (0, 3)
    assert empty.integers(3).shape == (0,)
    assert ExampleRNG.make(0, "attack", torch.arange(2)).uniform(()).shape == (2,)
