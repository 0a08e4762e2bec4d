"""Threats without a pixel range, which no leaderboard ranks, and corruptions, which have no radius."""

import numpy as np
import pytest

import advbench
from advbench.cli.terminal import print_result
from advbench.config import make_config
from advbench.plan.plan import make_plan
from advbench.reports.cells import load
from advbench.reports.standings import ranked_boards
from advbench.results.store import Store
from advbench.tasks.artefacts import artefact

pytestmark = pytest.mark.usefixtures("cache")


def plan_of(settings, **changes):
    return make_plan(make_config(**(settings | changes)), measure=False)


def test_without_clipping_the_whole_step_is_taken_and_no_board_ranks_it(settings, capsys):
    small = settings | {"matrix": "white-box", "defense": "none", "attack": "fgsm"}
    clipped, free = (advbench.run(**small | {"clip": clip}) for clip in (True, False))
    assert not set(clipped.cells) & set(free.cells)
    store = Store(free.out)
    record, examples = store.read(free.cells[0]), store.examples(free.cells[0])
    assert record.threat["box"] is None
    np.testing.assert_allclose(examples.distance_linf, 0.125, rtol=1e-5)
    pixels = 28 * 28
    # The step is the whole radius wherever the gradient is not zero, which clipping takes back on black and white pixels.
    assert np.median(examples.distance_l1) > 0.9 * 0.125 * pixels
    assert (store.examples(clipped.cells[0]).distance_l1 < examples.distance_l1).all()
    with np.load(artefact("craft", record.details["crafts"][0], free.out)) as file:
        assert file["x_adv"].min() < -0.1
        assert file["x_adv"].max() > 1.1
    assert [board.threat.norm for board in ranked_boards(load(store, clipped.cells))] == ["linf"]
    assert ranked_boards(load(store, free.cells)) == ()
    assert len(ranked_boards(load(store, [*clipped.cells, *free.cells]))[0].cells) == 1
    assert "no box" in (free.out / "leaderboard.md").read_text()
    from rich.console import Console

    print_result(plan_of(small, clip=False), free, Console())
    assert "these cells stand on no leaderboard" in capsys.readouterr().out
    print_result(plan_of(small), clipped, Console())
    assert "no leaderboard" not in capsys.readouterr().out


def test_corruptions_run_in_all_matrices_and_have_a_board_of_their_own(settings):
    small = settings | {"norm": "none", "defense": "none,input-noise(passes=2)", "n_examples": 12}
    result = advbench.run(**small | {"attack": "correlated-noise(points=3),estimated-noise(points=3)"})
    assert result.exit_code == 0
    # Two queried models and four transfers for each noise, which looks for no gradient and so needs no substitute.
    assert len(result.cells) == 2 * (2 + 4)
    records = [Store(result.out).read(key) for key in result.cells]
    assert {(record.threat["norm"], record.threat["epsilon"]) for record in records} == {("none", None)}
    (board,) = ranked_boards(load(Store(result.out), result.cells))
    assert board.threat.norm == "none"
    assert [standing.lacks for standing in board.standings] == [(), ()]


def test_the_suite_of_corruptions_has_no_training_for_a_ball(settings):
    plain = {name: settings[name] for name in ("out", "device", "batch")}
    plan = plan_of(plain, norm="none", matrix="white-box")
    names = {
        kind: {getattr(task.content, field).name for task in plan.tasks.values() if task.kind == kind}
        for kind, field in (("train", "defense"), ("craft", "attack"))
    }
    assert names == {"train": {"none", "input-noise"}, "craft": {"correlated-noise"}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"norm": "none", "attack": "correlated-noise", "epsilon": 0.3}, "Expected no `epsilon` with the norm none"),
        ({"norm": "none"}, "'fgsm' is for linf, got norm 'none'"),
        ({"clip": "perhaps"}, "`clip`"),
    ],
)
def test_what_does_not_fit_is_one_clear_line(settings, changes, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what is tested
        plan_of(settings, **changes)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_defense_with_a_norm_of_its_own_trains_at_its_usual_radius(settings):
    plan = plan_of(settings, norm="none", attack="correlated-noise", defense="pgd-linf", matrix="white-box")
    (train,) = [task for task in plan.tasks.values() if task.kind == "train"]
    assert train.content.defense.keywords["epsilon"] == plan.data.radii["linf"]
