"""Every flag fires on outcomes that deserve it, and on nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from advbench.results.flags import CHECKS, Paired, flags

N = 200


@pytest.fixture(scope="module")
def cell(make_record, make_examples):
    """`cell(attack, broken, ...)`: an outcome in which the examples `broken` (a range or indices) fall to the attack."""

    def make(
        attack, broken, *, matrix="white-box", epsilon=0.3, seed=0, arguments=None, minimal=False, rejected=None, **changes
    ):
        record = make_record(
            matrix=matrix,
            source=None if matrix == "white-box" else {"label": changes.pop("source", "other"), "kind": "model"},
            attack={
                "label": changes.pop("label", attack),
                "name": attack,
                "arguments": arguments or {},
                "minimal_norm": minimal,
                "source_hash": "a",
            },
            threat={"norm": "linf", "epsilon": epsilon, "box": [0.0, 1.0]},
            seed=seed,
            details=changes.pop("details", {}),
            **changes,
        )
        correct = np.ones(N, np.int16)
        correct[list(broken)] = 0
        distance = np.full(N, 0.1)
        if minimal:
            distance = np.where(correct == 0, distance, np.inf)
        arrays = dict.fromkeys(("distance_l0", "distance_l1", "distance_l2", "distance_linf", "rms"), distance)
        if rejected is not None:  # a detector stands beside the model, and alone on these images
            fooled = np.zeros(N, np.int16)
            fooled[list(rejected)] = 1
            arrays |= {"fooled_rejected": fooled, "clean_score": np.full(N, -1.0), "report_score": np.full(N, 0.0)}
        labels = np.arange(N) % 10
        return record, make_examples(
            N, select_correct=correct, report_correct=correct, label=labels, clean_prediction=labels, **arrays
        )

    return make


def names(*outcomes, others=(), epsilon=0.3):
    return [flag.name for flag in flags(outcomes, epsilon, others)]


@pytest.mark.parametrize(("first", "second"), [(0, 0), (12, 3), (3, 12), (9, 0), (50, 50)])
def test_the_paired_test_is_the_exact_one(first, second):
    p = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert Paired(first, second, N).p == pytest.approx(p)


def test_the_paired_test_rarely_fires_where_both_attackers_are_equal():
    rng = np.random.default_rng(0)
    fired = 0
    for _ in range(2000):
        a, b = rng.random((2, N)) < 0.3
        fired += Paired(int((a & ~b).sum()), int((b & ~a).sum()), N).clear()
    assert fired / 2000 <= 0.01


def test_an_evaluation_that_behaves_has_no_flag(cell):
    """Nested successes: noise, one step, many steps, restarts, larger radii, minimal norms that reach everything."""
    assert (
        names(
            cell("uniform-noise", range(5)),
            cell("fgsm", range(60)),
            cell("pgd", range(90), arguments={"steps": 10, "restarts": 1}, label="pgd(steps=10)"),
            cell("pgd", range(100), arguments={"steps": 100, "restarts": 1}),
            cell("pgd", range(103), arguments={"steps": 100, "restarts": 5}, label="pgd(restarts=5)"),
            cell("deepfool", range(N), minimal=True, epsilon=None),
            cell("pgd", range(40), matrix="transfer"),
            cell("pgd", range(101), matrix="transfer", source="none", arguments={"steps": 100, "restarts": 1}),
            others=[cell("pgd", range(50), epsilon=0.1, arguments={"steps": 100, "restarts": 1})],
        )
        == []
    )


@pytest.mark.parametrize("matrix", ["black-box", "transfer"])
def test_black_box_attacks_that_beat_gradients(cell, matrix):
    found = flags([cell("pgd", range(20)), cell("pgd", range(10, 50), matrix=matrix)], 0.3)
    (flag,) = found
    assert flag.name == "black-box beats white-box"
    assert flag.n == N
    assert "30 images that the other leaves, against 10" in flag.measured
    assert "10.0 points" in flag.measured
    assert "1802.00420" in flag.paper


def test_a_gradient_free_attack_in_the_white_box_matrix_is_no_white_box_attack(cell):
    assert names(cell("pgd", range(20)), cell("square", range(60))) == ["black-box beats white-box"]
    plugged = cell("mine", range(60))
    plugged[0].attack["gradients"] = False
    assert names(cell("pgd", range(20)), plugged) == ["black-box beats white-box"]


def test_a_plug_in_counts_by_the_family_that_its_record_names(cell):
    noise, step = cell("mine", range(100, 115)), cell("mine", range(60))
    noise[0].attack["family"], step[0].attack["family"] = "noise", "one gradient step"
    noise[0].attack["gradients"] = False
    assert names(cell("pgd", range(60)), noise) == ["noise finds what gradients miss"]
    assert names(cell("pgd", range(20), arguments={"steps": 40}), step) == ["one step beats many"]


def test_a_small_or_uncertain_advantage_is_no_flag(cell):
    assert names(cell("pgd", range(20)), cell("pgd", range(22), matrix="transfer")) == [], "one point"
    uncertain = cell("pgd", [*range(10), *range(100, 120)], matrix="transfer")
    assert names(cell("pgd", range(20)), uncertain) == [], "20 against 10 images: p = 0.1"


def test_a_transfer_of_a_model_to_itself_is_a_white_box_attack(cell):
    assert names(cell("pgd", range(20)), cell("pgd", range(60), matrix="transfer", source="none")) == []


def test_one_step_that_beats_many(cell):
    assert names(cell("fgsm", range(60)), cell("pgd", range(20), arguments={"steps": 40})) == ["one step beats many"]
    one = cell("pgd", range(60), arguments={"steps": 1}, label="pgd(steps=1)")
    assert "one step beats many" in names(one, cell("apgd-ce", range(20), arguments={"steps": 100}))


def test_noise_that_finds_what_gradients_miss(cell):
    noise = cell("uniform-noise", range(100, 115))
    assert names(cell("pgd", range(60)), noise) == ["noise finds what gradients miss"]
    assert names(cell("pgd", range(60)), cell("uniform-noise", range(55, 62))) == []


def test_minimal_norm_attacks_that_do_not_reach_all(cell):
    alone = cell("deepfool", range(150), minimal=True, epsilon=None)
    (flag,) = flags([alone], 0.3)
    assert flag.name == "unbounded attacks fail"
    assert "50 of 200" in flag.measured
    assert names(alone, cell("fmn", range(140, N), minimal=True, epsilon=None)) == [], "together they reach all"


def test_the_share_that_each_unbounded_attack_leaves_is_named(cell):
    (flag,) = flags(
        [
            cell("carlini-wagner", range(150), minimal=True, epsilon=None),
            cell("fmn", range(40, 170), minimal=True, epsilon=None),
        ],
        0.3,
    )
    assert flag.measured.startswith("30 of 200 clean-correct images (15.0%) survive every one of them at any distance")
    assert flag.measured.endswith("(carlini-wagner 25.0%, fmn 35.0%)")


@pytest.mark.parametrize(
    ("withstood", "expected"),
    [
        ([10] * 24 + [5] * 176, ["unbounded attacks fail"]),
        ([10] * 12 + [9] * 12 + [0] * 176, ["unbounded attacks fail"]),
        ([8] * 200, []),  # 5.5% of fair coins show as many
        ([10] * 4 + [0] * 196, []),  # 1.1% of fair coins show nine or ten
    ],
)
def test_a_random_model_that_nothing_reaches_at_any_distance(make_record, make_examples, withstood, expected):
    """Twelve percent of ten draws, as of one: counted are images that withstand more draws than a coin would let them."""
    record = make_record(
        target={**make_record().target, "stochastic": True},
        attack={**make_record().attack, "label": "carlini-wagner", "name": "carlini-wagner", "minimal_norm": True},
        threat={"norm": "l2", "epsilon": None, "box": [0.0, 1.0]},
    )
    withstood, labels = np.array(withstood, np.int16), np.arange(N) % 10
    distance = np.where(2 * withstood >= 10, np.inf, 0.1)
    arrays = dict.fromkeys(("distance_l0", "distance_l1", "distance_l2", "distance_linf", "rms"), distance)
    examples = make_examples(
        N,
        draws=10,
        clean_correct=np.full(N, 10, np.int16),
        select_correct=withstood,
        report_correct=withstood,
        label=labels,
        clean_prediction=labels,
        **arrays,
    )
    assert names((record, examples), epsilon=None) == expected
    if expected:
        assert "24 of 200 clean-correct images (12.0%)" in flags([(record, examples)], None)[0].measured


def test_images_that_stay_correct_where_all_can_be_grey(cell):
    assert names(cell("pgd", range(150), epsilon=0.5), epsilon=0.5) == ["unbounded attacks fail"]
    assert names(cell("pgd", range(185), epsilon=0.5), epsilon=0.5) == [], "a constant answer is right on a tenth"


def test_success_that_does_not_grow_with_epsilon(cell):
    small = cell("pgd", range(60), epsilon=0.1)
    assert names(cell("pgd", range(30)), others=[small]) == ["no growth with epsilon"], "it falls"
    assert names(cell("pgd", range(60)), others=[small]) == ["no growth with epsilon"], "it stalls"
    assert names(cell("pgd", range(90)), others=[small]) == []
    assert names(small, others=[cell("pgd", range(30))], epsilon=0.1) == [], "the larger radius is the one to blame"
    robust = cell("pgd", range(4), epsilon=0.1)
    assert names(cell("pgd", range(4), epsilon=0.2), others=[robust], epsilon=0.2) == [], "radii too small for anything"


def test_success_that_falls_with_steps(cell):
    few = cell("pgd", range(60), arguments={"steps": 10}, label="pgd(steps=10)")
    many = cell("pgd", range(30), arguments={"steps": 100})
    assert names(few, many) == ["no growth with steps"]
    assert names(cell("pgd", range(60), arguments={"steps": 10, "loss": "dlr"}), many) == [], "not the same attack"


def test_restarts_that_matter_much(cell):
    one = cell("pgd", range(60), arguments={"steps": 40, "restarts": 1})
    assert names(one, cell("pgd", range(90), arguments={"steps": 40, "restarts": 9})) == ["restarts matter much"]
    assert names(one, cell("pgd", range(66), arguments={"steps": 40, "restarts": 9})) == []


@pytest.mark.parametrize(
    ("diagnosis", "attack", "expected"),
    [
        ({"zero_gradient": 20, "zero_margin_gradient": 20, "flat": 0}, "pgd", ["zero gradients"]),
        ({"zero_gradient": 20, "zero_margin_gradient": 0, "flat": 0}, "pgd", ["zero gradients"]),
        ({"zero_gradient": 20, "zero_margin_gradient": 0, "flat": 0}, "apgd-dlr", []),
        ({"zero_gradient": 4, "zero_margin_gradient": 4, "flat": 4}, "pgd", []),
        ({"zero_gradient": 0, "zero_margin_gradient": 0, "flat": 20}, "pgd", ["loss does not rise"]),
        ({"zero_gradient": 0, "zero_margin_gradient": 0, "flat": 0, "unstable": 3}, "pgd", ["undeclared randomness"]),
        ({"zero_gradient": 0, "flat": 0, "probabilities": 64}, "pgd", ["probabilities as outputs"]),
        ({"nonfinite_gradient": 1, "zero_margin_gradient": 0, "flat": 0}, "pgd", ["non-finite gradients"]),
        ({"nonfinite_gradient": 0, "zero_margin_gradient": 0, "flat": 0}, "pgd", []),
    ],
)
def test_what_a_diagnosis_says(cell, diagnosis, attack, expected):
    assert names(cell(attack, range(60), details={"diagnosis": {"images": 64, **diagnosis}})) == expected


def test_seeds_are_pooled(cell):
    """Five images of a seed are no evidence, fifteen of three seeds are."""
    seeds = [
        outcome
        for seed in range(3)
        for outcome in (cell("pgd", range(20), seed=seed), cell("pgd", range(25), matrix="transfer", seed=seed))
    ]
    assert names(*seeds[:2]) == []
    (flag,) = flags(seeds, 0.3)
    assert flag.n == 3 * N


def test_robust_images_on_which_only_the_detector_stands(cell):
    watched = cell("pgd", range(100), rejected=range(60, 140))
    (flag,) = flags([watched], 0.3)
    assert flag.name == "rests on the detector"
    assert flag.n == 100
    assert "40 of 100 robust images (40.0%)" in flag.measured
    assert "without the detector 30.0% at most would be robust" in flag.measured
    other = cell("auto", range(90, 130), rejected=range(130, 150))
    (flag,) = flags([watched, other], 0.3)
    assert flag.n == 70, "what another attack breaks is not robust"
    assert "20 of 70" in flag.measured, "the detector stood alone in either"


def test_a_detector_that_is_hardly_needed_is_no_flag(cell):
    assert names(cell("pgd", range(100), rejected=range(100))) == [], "all of them fall"
    assert names(cell("pgd", range(100), rejected=range(100, 106))) == [], "six of a hundred may be chance"
    assert names(cell("pgd", range(100), rejected=())) == []
    assert names(cell("pgd", range(100))) == [], "no detector"


def test_a_perturbation_beyond_the_radius_shows_nothing_of_the_detector(cell):
    def reach(epsilon):
        return [cell("fmn", range(N), minimal=True, epsilon=None, rejected=range(150)), cell("pgd", (), epsilon=epsilon)]

    assert names(*reach(0.05), epsilon=0.05) == [], "the images are at 0.1"
    wide = [cell("fmn", (), minimal=True, epsilon=0.3, rejected=range(50)), cell("deepfool", range(N), minimal=True)]
    assert "rests on the detector" not in names(*wide), "together they break all"
    assert "rests on the detector" in names(wide[0])


def test_the_seeds_of_a_detector_are_pooled(cell):
    few = [cell("pgd", range(100), seed=seed, rejected=range(100, 110)) for seed in range(3)]
    assert names(few[0]) == []
    (flag,) = flags(few, 0.3)
    assert flag.n == 300
    assert "30 of 300" in flag.measured


def planted(missed, built=60, **changes):
    """The details of a cell whose attacks found all planted images but those missed."""
    found = {"images": 64, "built": built, "found": built - len(missed), "missed": list(missed), "control": 2, "points": 40}
    return {"unit_test": {**found, "probes": {}, "features": "10 logits", "unbuilt": {}, "reason": "", **changes}}


def test_every_flag_says_what_why_and_what_next(cell):
    seen = {}
    cases = [
        [cell("pgd", range(20)), cell("pgd", range(50), matrix="transfer")],
        [cell("fgsm", range(60)), cell("pgd", range(20))],
        [cell("pgd", range(20)), cell("uniform-noise", range(100, 120))],
        [cell("deepfool", range(100), minimal=True, epsilon=None)],
        [cell("pgd", range(9), arguments={"restarts": 1}), cell("pgd", range(60), arguments={"restarts": 2})],
        [cell("pgd", range(60), arguments={"steps": 5}), cell("pgd", range(9), arguments={"steps": 50})],
        [cell("pgd", range(60), rejected=range(60, 120))],
        [cell("pgd", range(60), details=planted(range(10)))],
        [cell("square", range(60), target=OWN)],
    ]
    details = {"images": 64, "zero_gradient": 30, "zero_margin_gradient": 30, "flat": 30, "unstable": 1}
    details |= {"nonfinite_gradient": 1, "probabilities": 64}
    cases.append([cell("pgd", range(60), details={"diagnosis": details})])
    for case in cases:
        seen |= {flag.name: flag for flag in flags(case, 0.3)}
    grown = flags([cell("pgd", range(60))], 0.3, [cell("pgd", range(60), epsilon=0.1)])
    seen |= {flag.name: flag for flag in grown}
    assert len(seen) == len(CHECKS)
    for flag in seen.values():
        assert all((flag.finding, flag.measured, flag.why, flag.paper, flag.remedy))
        assert flag.n > 0
        assert "arXiv" in flag.paper


OWN = {
    "label": "net.onnx",
    "defense": {"name": "own", "arguments": {}},
    "architecture": {"name": "own:net.onnx", "arguments": {}},
    "stochastic": False,
}


def test_a_model_of_the_users_without_gradient_attacks_is_an_upper_bound(cell):
    square, pgd = cell("square", range(60), target=OWN), cell("pgd", range(60), target=OWN)
    assert names(square) == ["no gradients"]
    assert names(cell("uniform-noise", range(60), target=OWN)) == ["no gradients"]
    assert names(square, pgd) == []
    assert names(cell("square", range(60))) == [], "a registered defense, whose attacks somebody chose"


def test_attacks_that_miss_planted_images_together(cell):
    alone = cell("pgd", range(60), details=planted(range(4)))
    (flag,) = flags([alone], 0.3)
    assert flag.name == "failed unit test"
    assert "56 of 60" in flag.measured
    assert flag.n == 60
    assert names(cell("pgd", range(60), details=planted(range(3)))) == [], "95% is enough"
    assert names(alone, cell("apgd-ce", range(60), details=planted(range(4, 10)))) == [], "together they find all"
    assert names(alone, cell("apgd-ce", range(60), details=planted(range(2, 10)))) == [], "together they miss two"
    assert names(alone, cell("apgd-ce", range(60))) == ["failed unit test"], "one that was not tested says nothing"
    other = cell("pgd", range(60), seed=1, details=planted([]))
    assert names(alone, other) == [], "4 of 120 over both seeds"


def test_what_cannot_be_tested_is_no_failure(cell):
    reason = {"unbuilt": {"a detector rejects every point at the edge": 64}}
    assert names(cell("pgd", range(60), details=planted([], built=0, **reason))) == []
