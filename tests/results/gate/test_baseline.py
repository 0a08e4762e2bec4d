from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from advbench.results import statistics
from advbench.results.boards import Attacker
from advbench.results.cells import Cell
from advbench.results.gate import baseline


def snapshot(outcomes):
    return baseline.snapshot([Cell(record, examples) for record, examples in outcomes])


@pytest.fixture(scope="session")
def make_cells(make_record, make_examples):
    """The cells of a run: targets under attacks and seeds, deterministic or with ten draws."""

    def make(seed=0, *, n=30, draws=1, labels=("a", "b"), attacks=("pgd", "deepfool"), seeds=(0, 1), epsilon=0.3):
        rng = np.random.default_rng(seed)
        cells = []
        for label in labels:
            for training in seeds:
                clean = rng.binomial(draws, 0.9, n)
                for attack in attacks:
                    minimal = attack == "deepfool"
                    record = make_record(
                        key=hashlib.sha256(f"{label}{training}{attack}{epsilon}".encode()).hexdigest(),
                        dataset={"name": "digits", "split": "test", "fingerprint": "f" * 64, "n": n},
                        target=make_record().target | {"label": label, "stochastic": draws > 1},
                        attack=make_record().attack | {"label": attack, "name": attack, "minimal_norm": minimal},
                        weights_sha256=f"{label}{training}",
                        threat={"norm": "linf", "epsilon": epsilon, "box": [0.0, 1.0]},
                        seed=training,
                        measured={"seconds": 2.0, "device": "cpu", "environment": {"advbench": "0.1.0"}},
                    )
                    distance = np.where(rng.random(n) < 0.2, np.inf, rng.random(n)) if minimal else np.full(n, 0.1)
                    examples = make_examples(
                        n,
                        draws,
                        index=np.arange(n) * 2,
                        clean_correct=clean,
                        report_correct=rng.binomial(draws, 0.4, n),
                        select_correct=rng.binomial(draws, 0.4, n),
                        distance_linf=distance,
                    )
                    cells.append((record, examples))
        return cells

    return make


@pytest.mark.parametrize("draws", [1, 10])
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_the_worst_case_of_a_snapshot_is_that_of_the_records(make_cells, draws, seed):
    cells = make_cells(seed, draws=draws)
    (board,) = snapshot(cells).boards
    for target in board.targets:
        for model in target.models:
            own = [cell for cell in cells if (cell[0].target["label"], cell[0].seed) == (target.label, model.seed)]
            expected = statistics.worst_case(own, 0.3).values
            np.testing.assert_allclose(model.worst_case(target.attackers), expected)
            for record, examples in own:
                attacker = Attacker("white-box", record.attack["label"], "")
                assert model.accuracy(attacker) == pytest.approx(statistics.robust(record, examples).mean())


@pytest.mark.parametrize("draws", [1, 10])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(1, 40))
def test_a_baseline_survives_its_file(make_cells, draws, seed, n):
    run = snapshot(make_cells(seed, n=n, draws=draws))
    text = baseline.to_text(run)
    again = baseline.from_text(text)
    assert baseline.to_text(again) == text
    for before, after in zip(run.boards[0].targets, again.boards[0].targets, strict=True):
        assert (before.label, before.facts, before.flags) == (after.label, after.facts, after.flags)
        for old, new in zip(before.models, after.models, strict=True):
            np.testing.assert_array_equal(old.clean, new.clean)
            np.testing.assert_array_equal(old.worst_case(before.attackers), new.worst_case(after.attackers))


def test_the_file_does_not_depend_on_the_order_of_the_cells_or_of_the_images(make_cells):
    cells = make_cells(draws=10)
    turn = np.random.default_rng(0).permutation(30)
    shuffled = [
        (
            record,
            replace(
                examples,
                **{
                    name: getattr(examples, name)[turn]
                    for name in examples.__dataclass_fields__
                    if np.ndim(getattr(examples, name)) == 1
                },
            ),
        )
        for record, examples in cells[::-1]
    ]
    assert baseline.to_text(snapshot(shuffled)) == baseline.to_text(snapshot(cells))


def test_the_file_is_small_and_its_accuracies_can_be_read(make_cells):
    text = baseline.to_text(snapshot(make_cells(n=10_000, draws=1)))
    assert len(text) < 4 * 2 * 10_000 / 8 * 1.34 * 2 + 20_000, "two attacks and a clean answer, a bit an image, in base64"
    model = json.loads(text)["boards"][0]["targets"][0]["models"][0]
    assert model["clean_accuracy"] == pytest.approx(0.9, abs=0.02)
    assert 0 < model["robust_accuracy"] < min(answers["accuracy"] for answers in model["answers"])


def test_every_radius_has_its_board_and_minimal_norm_cells_stand_on_each(make_cells):
    cells = make_cells(attacks=("pgd",), epsilon=0.1) + make_cells(attacks=("pgd",), epsilon=0.3)
    unbounded = [
        (replace(record, threat=record.threat | {"epsilon": None}, key="ab" * 32), examples)
        for record, examples in make_cells(attacks=("deepfool",))
    ]
    small, large = snapshot(_distinct(cells + unbounded)).boards
    assert (small.threat.epsilon, large.threat.epsilon) == (0.1, 0.3)
    assert {one.attack for one in small.targets[0].attackers} == {"pgd", "deepfool"}
    deepfool = Attacker("white-box", "deepfool", "")
    assert small.targets[0].models[0].accuracy(deepfool) > large.targets[0].models[0].accuracy(deepfool)


def _distinct(cells):
    """The clean answers of one model are the same in all of its cells."""
    clean = {}
    for record, examples in cells:
        clean.setdefault((record.target["label"], record.seed), examples.clean_correct)
    return [
        (record, replace(examples, clean_correct=clean[record.target["label"], record.seed])) for record, examples in cells
    ]


def test_the_oblivious_matrix_and_records_without_a_box_are_left_out(make_cells):
    cells = make_cells()
    source = {"label": "base", "kind": "model"}
    oblivious = [(replace(record, matrix="oblivious", source=source), examples) for record, examples in cells]
    boxless = [(replace(record, threat=record.threat | {"box": None}), examples) for record, examples in cells]
    assert baseline.to_text(snapshot(cells + oblivious + boxless)) == baseline.to_text(snapshot(cells))
    with pytest.raises(ValueError, match="nothing can be compared"):
        snapshot(boxless)


def test_the_weights_of_a_users_own_model_are_no_part_of_its_configuration(make_cells):
    """Each seed of a model of one's own comes from another file of weights."""

    def own(record):
        arguments = {"weights": f"net{record.seed}.pt", "weights_sha256": "ab" * record.seed, "mean": [0.5]}
        return replace(record, target=record.target | {"defense": {"name": "own", "arguments": arguments}})

    (board,) = snapshot([(own(record), examples) for record, examples in make_cells(labels=("a",))]).boards
    assert board.targets[0].facts["defense"] == {"name": "own", "arguments": {"mean": [0.5]}}
    assert len(board.targets[0].models) == 2


def test_a_run_with_a_failed_cell_makes_no_baseline(make_cells):
    (record, _), *others = make_cells()
    failed = replace(record, status="error", reason="ViolationError: outside", counts={})
    run = snapshot([(failed, None), *others])
    assert baseline.incomplete(run) == ["a, white-box pgd: ViolationError: outside"]
    with pytest.raises(
        ValueError, match="Expected a complete run for a baseline, got cells without numbers: a, white-box pgd"
    ):
        baseline.to_text(run)


def test_cells_that_do_not_belong_together_are_refused(make_cells):
    cells = make_cells()
    (record, examples), *others = cells
    with pytest.raises(ValueError, match="one answer of a of seed 0 to its clean images"):
        snapshot([(record, others[-1][1]), *others])
    with pytest.raises(ValueError, match="Expected one model named a of seed 0, got 2"):
        snapshot([(replace(record, weights_sha256="other"), examples), *others])
    with pytest.raises(ValueError, match="Expected one record of each attacker for a of seed 0"):
        snapshot([*cells, cells[0]])
    with pytest.raises(ValueError, match="Expected the same images in every cell"):
        snapshot([(record, replace(examples, index=examples.index + 1)), *others])
    attack = record.attack | {"arguments": {"steps": 7}}
    with pytest.raises(ValueError, match="Expected one attack named pgd"):
        snapshot([(replace(record, attack=attack), examples), *others])


@pytest.fixture(scope="module")
def text(make_cells):
    return baseline.to_text(snapshot(make_cells()))


def test_truncated_files_are_refused_in_a_line(text):
    for length in (0, 1, len(text) // 2, len(text) - 3):
        with pytest.raises(ValueError, match=r"got a cut off or damaged file .*`advbench baseline`") as caught:
            baseline.from_text(text[:length])
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "Expected a baseline of schema version 1, got 2: use a matching advbench"),
        ({"schema_version": None}, "schema version 1, got None"),
        ({"format": "junit"}, "another kind of JSON"),
        ({"advbench": "0.9"}, "one that was changed, such as by a merge"),
        ({"checksum": "0"}, "one that was changed"),
    ],
)
def test_other_files_are_refused_in_a_line(text, change, message):
    with pytest.raises(ValueError, match=message):
        baseline.from_text(json.dumps(json.loads(text) | change))
    with pytest.raises(ValueError, match="another kind of JSON"):
        baseline.from_text("[]")


def test_shuffled_and_edited_cells_are_noticed(text):
    content = json.loads(text)
    answers = content["boards"][0]["targets"][0]["models"][0]["answers"]
    answers[0]["report"], answers[1]["report"] = answers[1]["report"], answers[0]["report"]
    with pytest.raises(ValueError, match="one that was changed"):
        baseline.from_text(json.dumps(content))
    content = json.loads(text)
    content["boards"][0]["targets"].reverse()
    with pytest.raises(ValueError, match="one that was changed"):
        baseline.from_text(json.dumps(content))


def test_content_that_fits_its_checksum_and_nothing_else_is_refused():
    for boards in ([{}], [{"dataset": {"n": 3}}], 3):
        content = {"advbench": "1", "boards": boards}
        head = {"format": baseline.FORMAT, "schema_version": 1, "checksum": baseline._checksum(content)}
        with pytest.raises(ValueError, match="got damaged content"):
            baseline.from_text(json.dumps(head | content))


@given(st.integers(1, 12), st.lists(st.integers(0, 12), min_size=1, max_size=50))
def test_counts_are_packed_into_as_few_bits_as_they_need(largest, values):
    counts = np.minimum(values, largest)
    packed = baseline._packed(counts, largest)
    np.testing.assert_array_equal(baseline._unpacked(packed, largest, len(counts)), counts)
    assert len(packed) <= 4 * (-(-len(counts) * largest.bit_length() // 8) // 3 + 1)
    with pytest.raises(ValueError, match="Expected outcomes of"):
        baseline._unpacked(packed, largest, len(counts) + 8)
