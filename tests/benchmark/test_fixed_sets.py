"""Fixed sets: only what fooled the source, as many of each norm, scored from records as by a fresh forward pass."""

import numpy as np
import pytest
import torch

import advbench
from advbench.config import make_config
from advbench.plan.plan import make_plan
from advbench.results.store import Store
from advbench.tasks.models import load_defended

ATTACK = "pgd(steps=4)"
RADII = {"linf": "0.05,0.1", "l2": "2.0", "l1": "20.0"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three runs of the transfer matrix in one folder, and the plan of the last."""
    folder = tmp_path_factory.mktemp("fixed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ADVBENCH_CACHE", str(folder / "cache"))
        common = {"out": folder / "out", "matrix": "transfer", "attack": f"{ATTACK},fgm", "epochs": 2, "train_examples": 300}
        common |= {"architecture": "gu2014/n100-100-10", "batch": 16, "device": "cpu", "jobs": 1, "n_examples": 90}
        common |= {"defense": "none,weight-decay,input-noise(passes=2)", "draws": 2, "score_draws": 3}
        for norm, epsilon in RADII.items():
            assert advbench.run(**common, norm=norm, epsilon=epsilon).exit_code == 0
        yield folder / "out", make_plan(make_config(**common, norm=norm, epsilon=epsilon), measure=False)


def test_every_image_fools_the_source_and_every_norm_has_as_many(runs):
    out, _ = runs
    found = advbench.fixed_set(out, "none", attack=ATTACK)
    counts = dict(zip(*np.unique(found.norm, return_counts=True), strict=True))
    assert set(counts) == set(RADII)
    assert len(set(counts.values())) == 1
    assert len(found) >= 24
    assert {name: estimate.value for name, estimate in found.accuracy("none").items()} == dict.fromkeys((*RADII, "all"), 0.0)
    assert (np.diff(found.part) >= 0).all()
    assert len(set(zip(found.part, found.row, strict=True))) == len(found)
    store = Store(out)
    for part, key in enumerate(found.records):
        record, examples = store.read(key), store.examples(key)
        rows = found.row[found.part == part]
        assert set(found.norm[found.part == part]) <= {record.threat["norm"]}
        assert (examples.clean_correct[rows] == 1).all()
        np.testing.assert_array_equal(examples.index[rows], found.index[found.part == part])
        np.testing.assert_array_equal(examples.label[rows], found.label[found.part == part])
    smallest = min(
        sum(
            int(((examples.clean_correct == 1) & (examples.report_correct == 0)).sum())
            for record, examples in ((store.read(key), store.examples(key)) for key in found.records)
            if record.threat["norm"] == norm
        )
        for norm in RADII
    )
    assert set(counts.values()) == {smallest}


def test_records_say_what_a_fresh_forward_pass_says(runs):
    out, plan = runs
    found = advbench.fixed_set(out, "none", attack=ATTACK, size=25)
    assert sorted(np.unique(found.norm, return_counts=True)[1]) == [8, 8, 9]
    for key, task in plan.tasks.items():
        if task.kind != "train":
            continue
        name = task.content.defense.name
        defended = load_defended(key, plan.trainings, plan.data, torch.device("cpu"))
        if defended.stochastic:
            continue
        fresh, kept = found.score(defended), found.accuracy(name)
        assert fresh == kept
        assert (fresh["all"].value == 0) == (name == "none")
        assert fresh["all"].low <= fresh["all"].value <= fresh["all"].high
        parts = [np.sum(found.norm == norm) * fresh[norm].value for norm in RADII]
        assert sum(parts) == pytest.approx(25 * fresh["all"].value)
    assert 0 < found.accuracy("input-noise(passes=2)")["all"].value < 1


def test_a_stochastic_source_is_fooled_where_most_select_draws_are(runs):
    out, _ = runs
    found = advbench.fixed_set(out, "input-noise(passes=2)", attack=ATTACK)
    for part, key in enumerate(found.records):
        examples = Store(out).examples(key)
        rows = found.row[found.part == part]
        assert (2 * examples.select_correct[rows] < examples.draws).all()
        assert (2 * examples.clean_correct[rows] > examples.draws).all()


def test_images_are_those_that_were_crafted_and_the_choice_is_a_seeds(runs):
    out, plan = runs
    found = advbench.fixed_set(out, "none", attack=ATTACK, size=12)
    split = found.images()
    assert split.x.shape == (12, 1, 28, 28)
    clean = {int(index): x for x, index in zip(plan.data.test.x, plan.data.test.index, strict=True)}
    delta = split.x - torch.stack([clean[int(index)] for index in split.index])
    limits = {"linf": 0.1, "l2": 2.0, "l1": 20.0}
    for norm, order in (("linf", float("inf")), ("l2", 2), ("l1", 1)):
        lengths = torch.linalg.vector_norm(delta[torch.from_numpy(found.norm == norm)].flatten(1), ord=order, dim=1)
        assert (lengths <= limits[norm] * 1.0001).all()
    again, other = (
        advbench.fixed_set(out, "none", attack=ATTACK, size=12),
        advbench.fixed_set(out, "none", attack=ATTACK, size=12, choice=1),
    )
    np.testing.assert_array_equal(again.row, found.row)
    assert not np.array_equal(other.row, found.row)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "nobody"}, "Expected scored transfers of 'fgm' from 'nobody' to itself"),
        ({"source": "none", "attack": "pgd"}, "run `advbench run --matrix transfer` at each norm"),
        ({"source": "none", "seed": 1}, "seed 1"),
        ({"source": "none", "norms": ["l0"]}, "Expected scored transfers"),
        ({"source": "none", "attack": ATTACK, "size": 10_000}, "images of each norm that fool the source"),
        ({"source": "none", "attack": ATTACK, "size": 2}, "at least the number of norms, 3, got 2"),
        ({"source": "none"}, "Expected 1 images of each norm that fool the source, got 0 of l1"),
    ],
)
def test_what_is_not_there_is_one_clear_line(runs, arguments, message):
    with pytest.raises(ValueError, match=message) as caught:
        advbench.fixed_set(runs[0], **arguments)
    assert "\n" not in str(caught.value)


def test_norms_may_be_left_out(runs):
    """One pixel, the step of the fast gradient method in l1, fools no network here."""
    found = advbench.fixed_set(runs[0], "none", norms=["l2", "linf"])
    counts = np.unique(found.norm, return_counts=True)
    assert counts[0].tolist() == ["l2", "linf"]
    assert len(set(counts[1])) == 1
    assert set(found.accuracy("weight-decay")) == {"l2", "linf", "all"}


def test_a_target_without_records_is_named(runs):
    with pytest.raises(ValueError, match="Expected a scored transfer from 'none' to 'pgd-linf'"):
        advbench.fixed_set(runs[0], "none", attack=ATTACK).accuracy("pgd-linf")
