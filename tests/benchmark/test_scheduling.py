"""The order of tasks and the time left, on a simulated clock: Graham's bound for list scheduling, and known durations."""

from __future__ import annotations

import dataclasses
import heapq
from dataclasses import dataclass
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advbench.config import make_config
from advbench.engine import scheduler
from advbench.engine.claims import Unclaimed
from advbench.engine.scheduler import longest_paths, run_plan
from advbench.engine.time_left import TimeLeft
from advbench.plan.plan import Plan
from advbench.tasks.clean import CleanContent
from advbench.tasks.execution import TaskOutcome
from advbench.tasks.images import Images
from advbench.tasks.task import Task


@dataclass(frozen=True)
class Node:
    """A content that needs others."""

    needs: tuple[str, ...] = ()
    kind: str = "craft"


def node(name, cost, *needs):
    return Task(name, Node(needs), f"label of {name}", cost)


class Simulated:
    """An engine on a clock of its own: a task takes its seconds; a task whose needs have not ended is refused."""

    def __init__(self, slots, seconds):
        self.slots, self.seconds = slots, seconds
        self.now, self.busy = 0.0, 0.0
        self.running = []
        self.ended = set()
        self.starts = {}

    def submit(self, task):
        assert set(task.needs) <= self.ended
        assert len(self.running) < self.slots
        self.starts[task.key] = self.now
        heapq.heappush(self.running, (self.now + self.seconds[task.key], task.key))

    def wait(self, timeout=None):
        self.now, key = heapq.heappop(self.running)
        self.ended.add(key)
        return TaskOutcome(key, self.seconds[key], "")

    def close(self, *, kill=False):
        assert not kill


@pytest.fixture
def scheduled(monkeypatch, tmp_path):
    """Run tasks on a simulated engine."""

    def run(tasks, engine, watch=None):
        config = make_config(out=tmp_path, jobs=engine.slots)
        plan = Plan(config, None, [], {task.key: task for task in tasks}, {}, {}, ())
        monkeypatch.setattr(scheduler, "TimeLeft", partial(TimeLeft, clock=lambda: engine.now))
        monkeypatch.setattr(Plan, "pending", lambda self: list(tasks))
        return run_plan(plan, watch, lambda *_: engine, Unclaimed())

    return run


def test_the_longest_paths_of_a_diamond():
    tasks = [node("a", 1.0), node("b", 2.0, "a"), node("c", 5.0, "a"), node("d", 3.0, "b", "c"), node("e", 4.0)]
    assert longest_paths(tasks) == {"a": 9.0, "b": 5.0, "c": 8.0, "d": 3.0, "e": 4.0}


def test_no_slot_waits_for_the_slowest_task_of_a_level(scheduled):
    """Two chains of unequal tasks on two slots: each goes on at once; level by level it would take 10 + 10 + 10."""
    chains = [
        *(node("a0", 10), node("a1", 1, "a0"), node("a2", 10, "a1")),
        *(node("b0", 1), node("b1", 10, "b0"), node("b2", 10, "b1")),
    ]
    engine = Simulated(2, {task.key: task.cost for task in chains})
    scheduled(chains, engine)
    assert engine.now == 21
    assert engine.starts == {"a0": 0, "b0": 0, "b1": 1, "a1": 10, "a2": 11, "b2": 11}


def test_the_head_of_the_longest_chain_goes_first_though_others_cost_more(scheduled):
    chain = [node("c0", 1), node("c1", 9, "c0"), node("c2", 9, "c1")]
    alone = [node(f"alone {i}", 5) for i in range(3)]
    engine = Simulated(2, {task.key: task.cost for task in alone + chain})
    scheduled(alone + chain, engine)
    assert engine.starts["c0"] == 0
    assert engine.now == 19  # the chain's length; costliest first it would be 24


def test_the_order_follows_seconds_as_soon_as_they_are_learnt(scheduled):
    """A unit of a training's cost takes a thousand times as long as one of a craft's, which no cost says.

    By costs the ten crafts (100 each) go before a chain of three trainings (1 each): 100 s, 50 s, 300 s. As soon as one
    craft has ended the chain is known to be longer, and hides the others.
    """
    trained = [Task(name, Node((), "train"), name, 1.0) for name in ("a", "b")]
    crafts = [node(f"craft {i}", 100.0, "a") for i in range(10)]
    chain = [Task(f"b{i}", Node((f"b{i - 1}" if i else "b",), "train"), "", 1.0) for i in range(3)]
    tasks = [*trained, *crafts, *chain]
    engine = Simulated(2, {task.key: task.cost * (100.0 if task.kind == "train" else 0.1) for task in tasks})
    scheduled(tasks, engine)
    assert (engine.starts["b0"], engine.now) == (110, 410)


@st.composite
def graphs(draw):
    size = draw(st.integers(1, 25))
    tasks = []
    for i in range(size):
        needs = draw(st.sets(st.integers(0, i - 1), max_size=3)) if i else set()
        tasks.append(node(str(i), float(draw(st.integers(1, 50))), *(str(need) for need in sorted(needs))))
    return tasks, draw(st.integers(1, 5))


def test_every_order_keeps_grahams_bound(scheduled):
    """No slot idles while a task is ready: at most work / m + (1 - 1/m) of the longest chain (Graham 1969)."""

    @settings(max_examples=150, deadline=None)
    @given(graphs())
    def check(drawn):
        tasks, slots = drawn
        engine = Simulated(slots, {task.key: task.cost for task in tasks})
        assert scheduled(tasks, engine).ran == len(tasks)
        assert engine.ended == {task.key for task in tasks}
        chain, work = max(longest_paths(tasks).values()), sum(task.cost for task in tasks)
        assert max(chain, work / slots) <= engine.now <= work / slots + (1 - 1 / slots) * chain + 1e-9

    check()


def test_a_failure_ends_all_that_need_it_and_nothing_else(scheduled):
    tasks = [node("a", 1), node("b", 1, "a"), node("c", 1, "b"), node("d", 1), node("e", 1, "a", "d"), node("f", 1, "d")]

    class Failing(Simulated):
        def wait(self, timeout=None):
            outcome = super().wait()
            return dataclasses.replace(outcome, reason="no such luck" if outcome.key == "a" else "")

    engine = Failing(2, {task.key: 1.0 for task in tasks})
    seen = []
    result = scheduled(tasks, engine, lambda status: seen.append((status.done, sorted(status.failed))))
    assert engine.starts.keys() == {"a", "d", "f"}
    assert result.ran == 6
    assert seen[-1] == (6, [f"label of {name}" for name in "abce"])


def test_a_chain_of_a_thousand_failures_is_no_recursion(scheduled):
    tasks = [node("0", 1), *(node(str(i), 1, str(i - 1)) for i in range(1, 3000))]

    class Failing(Simulated):
        def wait(self, timeout=None):
            return dataclasses.replace(super().wait(), reason="no such luck")

    assert scheduled(tasks, Failing(1, {task.key: 1.0 for task in tasks})).ran == 3000


# --- the time left


def of_model(name, model, cost):
    return Task(name, CleanContent(model, 1, Images(0, "digits", "test", 4, 4, "cpu")), name, cost)


def test_rates_are_of_the_kind_and_model_then_of_the_kind_then_of_all():
    clock = [0.0]
    tasks = [
        of_model("slow", "x", 2.0),
        of_model("slow again", "x", 5.0),
        of_model("fast", "y", 1.0),
        of_model("new", "z", 4.0),
    ]
    trained = Task("train", Node((), "train"), "train", 10.0)
    time_left = TimeLeft([*tasks, trained], 2, lambda: clock[0])
    assert time_left.seconds_left is None
    for task, seconds in ((tasks[0], 20.0), (tasks[2], 4.0)):  # 10 and 4 seconds per unit, 8 per unit of the kind
        time_left.starts(task)
        clock[0] += seconds
        time_left.ends(task)
    assert time_left.seconds_left == (5 * 10 + 4 * 8 + 10 * 8) / 2
    time_left.starts(tasks[1])
    clock[0] += 30.0
    assert time_left.seconds_left == (20 + 4 * 8 + 10 * 8) / 2
    clock[0] += 100.0  # longer than expected: nothing of it is left, but nothing is negative
    assert time_left.seconds_left == (4 * 8 + 10 * 8) / 2
    time_left.ends(trained)  # never started, as a need of it failed
    assert time_left.seconds_left == 4 * 8 / 2


@pytest.mark.parametrize("slots", [1, 2, 4])
def test_from_a_tenth_of_the_run_on_the_time_left_is_within_a_factor_of_two(scheduled, slots):
    """Forty models, each with a training and crafts; a unit of a craft's cost takes 500 times the seconds of a training's.

    Models are up to six times as slow as others.
    """
    tasks, seconds = [], {}
    for i in range(40):
        tasks.append(Task(f"train {i}", Node((), "train"), "", 10.0 + i % 3))
        tasks.extend(Task(f"craft {i} {j}", Node((f"train {i}",)), "", 100.0 * (1 + j)) for j in range(10))
        speed = 1 + 5 * (i * 7 % 40) / 40
        seconds |= {task.key: (0.002 if task.kind == "train" else 1.0) * task.cost * speed for task in tasks[-11:]}
    engine, seen = Simulated(slots, seconds), []

    def watch(status):
        seen.append((engine.now, status.seconds_left))

    scheduled(tasks, engine, watch)
    later = [(left, engine.now - now) for now, left in seen if 0.1 * engine.now <= now <= 0.9 * engine.now]
    assert len(later) > 100
    assert all(right / 2 <= left <= 2 * right for left, right in later)
