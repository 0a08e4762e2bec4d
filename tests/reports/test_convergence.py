"""Convergence of attacks: accuracy by passes, against shares worked out by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from advbench.reports import standings
from advbench.reports.convergence import convergence_section, ladders
from advbench.results.boards import boards
from advbench.results.cells import Cell
from advbench.results.significance import exact_mcnemar
from tests.reports.conftest import Suite

N = 40


def _cell(label, left, passes, *, target="a", seed=0, name="pgd", arguments=None, n=N, source=None, draws=1):
    """An attack that leaves the first `left` images of `n`, at so many passes for each."""
    suite = Suite(n=n, targets={target: 0.5}, attacks={name: 1.0}, stochastic=())
    record = suite._record(seed, 0.3, "white-box", target, name, None)
    attack = record.attack | {"label": label, "name": name, "arguments": arguments or {}}
    matrix = "black-box" if source else "white-box"
    counts = {"examples": n, "forwards": passes * n // 2, "backwards": passes * n // 2, "queries": 0}
    right = np.where(np.arange(n) < left, draws, 0)
    examples = suite.examples(record)
    examples = replace(
        examples, draws=draws, clean_correct=np.full(n, draws), select_correct=right, report_correct=right,
        report_wrong=draws - right, clean_prediction=examples.label,
    )  # fmt: skip
    key = hashlib.sha256(f"{label}{target}{seed}".encode()).hexdigest()
    return Cell(replace(record, key=key, attack=attack, matrix=matrix, source=source, counts=counts), examples)


def _section(*cells):
    (board,) = boards(cells)
    return convergence_section(standings._ranked_board(board))


def _ladders(*cells):
    (board,) = boards(cells)
    return ladders(standings._ranked_board(board))


def test_each_setting_is_held_against_the_strongest_of_fewer_passes():
    cells = [_cell("pgd(steps=40)", 24, 80), _cell("pgd(steps=10)", 30, 20), _cell("pgd(steps=20)", 31, 40)]
    section = _section(*cells)
    rows = [[entry.text for entry in row] for row in section.tables[0].rows]
    assert [row[2:4] for row in rows] == [["pgd(steps=10)", "20"], ["pgd(steps=20)", "40"], ["pgd(steps=40)", "80"]]
    assert [row[4] for row in rows] == ["75.0%", "77.5%", "60.0%"]
    assert [row[5] for row in rows] == ["–", "-2.5", "+15.0"]
    p = float(exact_mcnemar(0, 6))
    assert section.tables[0].rows[2][5].note == f"p {p:.2g}"
    assert [row[5].tone for row in section.tables[0].rows] == ["muted", "", "warning"]
    assert section.caveats == (
        "pgd on a has not converged: pgd(steps=40) breaks another 15.0 points (p 0.031), so that its accuracy is an upper "
        "bound.",
    )


def test_below_a_point_it_has_converged_and_at_a_point_it_has_not():
    at, below = (
        _section(_cell("pgd(steps=10)", 500, 20, n=1000), _cell("pgd(steps=20)", left, 40, n=1000)) for left in (490, 491)
    )
    assert [len(one.caveats) for one in (at, below)] == [1, 0]


def test_a_gain_that_chance_may_have_given_is_told_with_a_may():
    section = _section(_cell("pgd(steps=10)", 24, 20), _cell("pgd(steps=20)", 23, 40))
    assert section.caveats[0].startswith("pgd on a may not have converged: pgd(steps=20) breaks another 2.5 points (p 1)")


def test_over_seeds_it_is_the_mean_and_a_setting_that_lacks_a_seed_stands_in_no_ladder():
    few = [_cell("pgd(steps=1)", left, 2, seed=seed) for seed, left in ((0, 30), (1, 20))]
    more = [_cell("pgd(steps=2)", left, 4, seed=seed) for seed, left in ((0, 10), (1, 20))]
    (found,) = _ladders(*few, *more, _cell("pgd(steps=4)", 0, 8))
    assert [one.accuracy for one in found.settings] == [25 / 40, 15 / 40]
    assert found.gain(found.settings[1]) == pytest.approx(0.25)


def test_draws_of_an_attack_that_runs_alone_in_a_worst_case_are_settings_of_it():
    def drawn(steps, draws, left):
        text = f"worst-case(attacks=['pgd(steps={steps})'], draws={draws})"
        arguments = {"attacks": (f"pgd(steps={steps})",), "draws": draws}
        return _cell(text, left, 2 * steps * draws, name="worst-case", arguments=arguments, draws=10)

    both = _cell("worst-case", 5, 900, name="worst-case", arguments={"attacks": ("pgd", "fab-t")}, draws=10)
    (found,) = _ladders(drawn(16, 4, 20), drawn(4, 4, 33), _cell("pgd", 30, 80, draws=10), both)
    assert found.attack == "pgd"
    assert [(one.passes, one.accuracy) for one in found.settings] == [(32, 33 / 40), (80, 30 / 40), (128, 20 / 40)]


def test_targets_and_kinds_of_access_are_apart_and_one_setting_alone_is_no_ladder():
    asked = {"label": "score queries", "kind": "queries"}
    cells = [_cell("pgd(steps=1)", 30, 2), _cell("pgd(steps=1)", 20, 2, target="b"), _cell("fgsm", 10, 2, name="fgsm")]
    assert _section(*cells) is None
    cells += [
        _cell("square(queries=10)", 30, 10, name="square", source=asked),
        _cell("square(queries=20)", 20, 20, name="square", source=asked),
    ]
    (found,) = _ladders(*cells)
    assert (found.target, found.attack) == ("a", "square")


def test_substitutes_and_other_models_say_nothing_of_convergence():
    other = {"label": "substitute", "kind": "substitute"}
    cells = [_cell(f"pgd(steps={steps})", 30, steps, source=other) for steps in (1, 2)]
    assert _section(*cells) is None


def test_other_images_and_images_that_took_no_pass_stand_in_no_ladder():
    first, more = _cell("pgd(steps=1)", 30, 2), _cell("pgd(steps=2)", 20, 4)
    moved = replace(more.examples, index=more.examples.index + 1)
    assert _ladders(first, Cell(more.record, moved)) == []
    backwards = replace(more.examples, **{
        name: getattr(more.examples, name)[::-1]
        for name in (
            "index", "label", "clean_prediction", "clean_correct", "select_correct", "report_correct", "report_wrong"
        )
    })  # fmt: skip
    (found,) = _ladders(first, Cell(more.record, backwards))
    assert found.settings[1].by_image.tolist() == [1.0] * 20 + [0.0] * 20
    assert _ladders(_cell("images:a", 30, 0), _cell("images:a(minimal=True)", 20, 0)) == []
