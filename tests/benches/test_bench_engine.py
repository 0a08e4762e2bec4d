"""The bench of the engine: what it runs, and how its rows are made of seconds."""

from __future__ import annotations

import pytest
import torch

from advbench.benches import engine


def test_all_tasks_of_the_bench_run_in_worker_processes_and_write_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path / "cache"))
    plan = engine._plan(tmp_path / "out", 30)
    assert len(plan.pending()) == len(plan.trainings) == 30
    assert engine.run_plan(plan, engine_for=engine._process_engine).ran == 30
    assert len(plan.pending()) == 30
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"plan.json", "token"}  # the run's own


def test_a_task_that_fails_is_no_measurement(tmp_path, monkeypatch):
    def broken(task, context, device):
        raise LookupError("a bug")

    monkeypatch.setattr(engine, "_no_work", broken)
    with pytest.raises(KeyError):  # the cells of the bench are trainings, which get no record
        engine._run(engine._plan(tmp_path, 3))


def test_the_rows_are_the_fastest_round_and_what_is_beyond_loky(monkeypatch):
    ours, alone = iter([0.004, 0.003]), iter([0.0005, 0.001])
    monkeypatch.setattr(engine, "_engine", lambda tasks: next(ours))
    monkeypatch.setattr(engine, "_loky", lambda tasks: next(alone))
    first, second = engine.rows(torch.device("cpu"))
    assert first.ratio == pytest.approx(6)
    assert (first.bar, first.holds) == (None, True)
    assert second.ratio == pytest.approx(1.25)
    assert (second.bar, second.holds) == (1.0, False)


def test_the_processor_is_measured_in_any_case(monkeypatch):
    monkeypatch.setattr(engine, "_ROUNDS", 1)
    rows = list(engine.rows(torch.device("cpu"), tasks=12))
    assert [row.reference_seconds > 0 for row in rows] == [True, True]
    assert rows[0].case == "12 tasks that do nothing, 2 workers"
