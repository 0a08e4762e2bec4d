from __future__ import annotations

import json
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.results.record import Gallery, Record

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(facts=st.dictionaries(st.text(max_size=8), json_values, max_size=4))
def test_a_record_equals_its_round_trip(make_record, facts):
    record = make_record(matrix="transfer", source={"label": "none", "kind": "model", **facts}, details=facts)
    assert Record.from_json(record.to_json()) == record


def test_tuples_become_lists_so_that_the_round_trip_holds(make_record):
    record = make_record(threat={"norm": "linf", "epsilon": 0.3, "box": (0.0, 1.0)})
    assert record.threat["box"] == [0.0, 1.0]
    assert Record.from_json(record.to_json()) == record


def test_a_record_does_not_share_its_parts_with_the_caller(make_record):
    details = {"tried": ["faithful"]}
    record = make_record(details=details)
    details["tried"].append("bpda")
    assert record.details == {"tried": ["faithful"]}


@pytest.mark.parametrize("name", [field.name for field in fields(Record)])
def test_a_missing_field_is_named(make_record, name):
    content = json.loads(make_record().to_json())
    del content[name]
    with pytest.raises(ValueError, match=rf"missing {name}$"):
        Record.from_json(json.dumps(content))


def test_an_unknown_field_and_schema_version_are_refused(make_record):
    content = json.loads(make_record().to_json())
    with pytest.raises(ValueError, match="unknown colour"):
        Record.from_json(json.dumps(content | {"colour": "red"}))
    for version in (3, "1", True, None):
        with pytest.raises(ValueError, match="Expected a record of schema version 1 or 2, got"):
            Record.from_json(json.dumps(content | {"schema_version": version}))


@pytest.mark.parametrize("text", ["", "[]", "null", "{", '"record"'])
def test_text_that_is_no_record_is_one_clear_line(text):
    with pytest.raises(ValueError, match=r"\AExpected a record .*\Z"):
        Record.from_json(text)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"key": "../../etc/passwd"}, "Expected a key of 64 hex digits"),
        ({"key": "A" * 64}, "Expected a key of 64 hex digits"),
        ({"status": "fine"}, "`status` of a record to be one of ok, skipped, error"),
        ({"matrix": "grey-box"}, "`matrix` of a record to be one of white-box, black-box, transfer"),
        ({"seed": True}, "`seed` of a record to be int, got True"),
        ({"seed": 1.0}, "`seed` of a record to be int"),
        ({"dataset": {"name": "digits"}}, "`dataset` of a record to have `split`"),
        ({"threat": {"norm": "l2", "epsilon": "1", "box": None}}, "`threat.epsilon` of a record to be int or float or None"),
        ({"source": {"label": "x", "kind": "model"}}, "`source` of a record to be None"),
        ({"matrix": "transfer"}, "`source` of a record to be dict, got None"),
        ({"counts": {"examples": 4}}, "`counts` of a record to have `forwards`, got examples"),
        ({"details": {"loss": float("nan")}}, "`details.loss` of a record to be a value that JSON knows, got nan"),
        ({"details": {"steps": [1, {"a": np.int64(3)}]}}, r"`details.steps\[1\].a` of a record"),
        ({"details": {1: 2}}, "`details member` of a record to be str, got 1"),
    ],
)
def test_a_wrong_type_is_named(make_record, changes, message):
    with pytest.raises(ValueError, match=message):
        make_record(**changes)


def test_a_failed_cell_needs_no_counts(make_record):
    record = make_record(status="error", reason="RuntimeError: out of memory", counts={}, measured={})
    assert Record.from_json(record.to_json()).reason == "RuntimeError: out of memory"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"draws": 0}, "`draws` >= 1"),
        ({"label": np.zeros(3, np.int64)}, "arrays of one length"),
        ({"label": np.zeros(4)}, "`label` to be int64 with 1 axes, got float64"),
        ({"index": np.zeros((4, 1), np.int64)}, "`index` to be int64 with 1 axes"),
        ({"index": np.array([0, 1, 1, 2])}, "`index` to name every example once"),
        ({"report_correct": np.array([0, 1, 2, 0])}, r"`report_correct` in \[0, 1\]"),
        ({"clean_correct": np.array([0, 1, -1, 0])}, r"`clean_correct` in \[0, 1\]"),
        ({"select_correct": np.array([0, 70000, 0, 0])}, "`select_correct` to fit int16"),
        ({"distance_l2": np.array([0.0, np.nan, np.inf, -1.0])}, "`distance_l2` >= 0"),
    ],
)
def test_outcomes_that_cannot_be_are_refused(make_examples, changes, message):
    with pytest.raises(ValueError, match=message):
        make_examples(**changes)


def test_narrower_integers_are_widened_and_infinite_distances_kept(make_examples):
    examples = make_examples(label=np.zeros(4, np.int32), distance_l2=np.array([0.0, np.nan, np.inf, 1.0]))
    assert examples.label.dtype == np.int64
    assert examples.report_correct.dtype == np.int16
    np.testing.assert_array_equal(examples.distance_l2, [0.0, np.nan, np.inf, 1.0])


def test_a_record_without_the_count_of_rejected_errors_has_what_the_chosen_images_show(make_examples):
    wrong, rejected = np.array([0, 1, 0, 1], np.int16), np.array([0, 0, 1, 1], np.int16)
    assert make_examples(report_wrong=wrong, report_rejected=rejected).fooled_rejected.tolist() == [0, 0, 0, 1]
    draws = make_examples(draws=10, report_wrong=6 * wrong, report_rejected=7 * rejected)
    assert draws.fooled_rejected.tolist() == [0, 0, 0, 3], "three of ten draws at least"
    assert make_examples(draws=10).fooled_rejected.tolist() == [0] * 4
    given = make_examples(draws=10, report_wrong=wrong, report_rejected=rejected, fooled_rejected=np.full(4, 2, np.int16))
    assert given.fooled_rejected.tolist() == [2] * 4
    with pytest.raises(ValueError, match=r"Expected `fooled_rejected` in \[0, 10\]"):
        make_examples(draws=10, fooled_rejected=np.full(4, 11, np.int16))


def test_a_gallery_holds_ten_images_at_most():
    labels = dict.fromkeys(("index", "label", "prediction"), np.zeros(11, np.int64))
    with pytest.raises(ValueError, match="at most 10 images"):
        Gallery(clean=np.zeros((11, 1, 2, 2), np.float32), adversarial=np.zeros((11, 1, 2, 2), np.float32), **labels)
    labels = dict.fromkeys(("index", "label", "prediction"), np.zeros(1, np.int64))
    with pytest.raises(ValueError, match="of one shape"):
        Gallery(clean=np.zeros((1, 1, 2, 2), np.float32), adversarial=np.zeros((1, 1, 2, 3), np.float32), **labels)
