import pytest
from hypothesis import given
from hypothesis import strategies as st

from advbench.config import make_config, to_toml
from advbench.plan.plan import make_plan
from advbench.registry.specs import Spec
from advbench.results.matrices import RANKED


def test_the_defaults_are_the_main_job():
    config = make_config()
    assert (config.matrix, config.dataset, config.norm, config.draws) == (RANKED, "digits", "linf", None)
    assert config.defense is None
    assert str(config.out) == "advbench-out"


def test_a_file_sets_and_flags_override(tmp_path):
    file = tmp_path / "run.toml"
    file.write_text(
        'matrix = "transfer"\nepsilon = [0.2, 0.1]\nn-examples = 50\nseed = 3\n'
        'attack = ["fgsm", {name = "pgd", steps = 100}]\n'
    )
    config = make_config(file, n_examples=60, seed="0,1")
    assert config.matrix == ("transfer",)
    assert config.epsilon == (0.1, 0.2)
    assert config.n_examples == 60
    assert config.seed == (0, 1)
    assert config.attack == (Spec("fgsm"), Spec.of("pgd", {"steps": 100}))


@given(st.integers(1, 255), st.integers(1, 255))
def test_a_radius_may_be_a_fraction(above, below):
    assert make_config(epsilon=f"{above}/{below}").epsilon == (above / below,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": "-0.1"}, "`epsilon`: Expected `epsilon` > 0, got -0.1"),
        ({"epsilon": "nan"}, "`epsilon`: Expected `epsilon` > 0, got nan"),
        ({"epsilon": "8/0"}, "`epsilon`: Expected numbers such as 0.1 or 8/255, got '8/0', which divides by zero"),
        ({"epsilon": ["0.1", "1/x"]}, "`epsilon`: Expected numbers such as 0.1 or 8/255, got '1/x'"),
        ({"epsilon": "much"}, "got 'much'"),
        ({"seed": "-1"}, "Expected seeds in [0, "),
        ({"seed": ""}, "Expected seeds in [0, "),
        ({"n_examples": 0}, "`n-examples`"),
        ({"norm": "l3"}, "`norm`"),
        ({"matrix": "whitebox"}, "Expected white-box, black-box, transfer or all, got 'whitebox': did you mean white-box?"),
        ({"matrix": "grid"}, "or all, got 'grid'"),
        ({"attack": "pgd(steps=ten)"}, "got 'pgd(steps=ten)': ten is no number, and a text has quotes, 'ten'"),
        ({"attack": "(steps=10)"}, "Expected the name of a component before its arguments, got '(steps=10)'"),
        ({"defense": [{"name": ""}]}, 'Expected a name or a table such as {name = "pgd", steps = 100}'),
        ({"out": __file__}, f"`out`: Expected a folder, got a file: {__file__}"),
        ({"attack": [7]}, "got 7"),
        ({"atack": "pgd"}, "unknown setting 'atack': did you mean attack?"),
        ({"zzz": 1}, "unknown setting 'zzz': known are matrix, dataset"),
        ({"time_limit": 0}, "`time-limit`"),
        ({"time_limit": "inf"}, "`time-limit`"),
        ({"slots_per_device": 0}, "`slots-per-device`"),
        ({"engine": "grid"}, "'local', 'pilots', 'slurm' or 'dask'"),
        ({"jobs": 2, "slots_per_device": 1}, "Expected `jobs` or `slots_per_device`, got both (2 and 1)"),
        ({"address": "tcp://host:8786"}, "Expected an `address` with the engine dask only"),
        ({"time_limit": 60, "backend": "threading"}, "a thread cannot be ended"),
    ],
)
def test_bad_settings_are_one_clear_line(settings, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the message is what is tested
        make_config(**settings)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("content", "message"), [(b"a = ", "not valid TOML"), (b"\xff", "UTF-8"), (None, "TOML file at")])
def test_a_bad_file_is_one_clear_line(tmp_path, content, message):
    file = tmp_path / "run.toml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        make_config(file)


def test_settings_of_the_place_are_not_saved_with_a_run():
    here = {"engine": "dask", "address": "tcp://host:8786", "time_limit": 60, "slots_per_device": 2}
    assert to_toml(make_config(**here)) == to_toml(make_config())


def test_momentum_and_weight_decay_reach_every_training(tmp_path, cache):
    chosen = {"momentum": 0.5, "nesterov": False, "weight_decay": 1e-3, "optimizer": "sgd"}
    config = make_config(dataset="digits", defense="none", attack="fgsm", matrix="white-box", out=tmp_path, **chosen)
    budgets = [content.budget for content in make_plan(config, measure=False).trainings.values()]
    assert budgets
    assert all(getattr(budget, name) == value for budget in budgets for name, value in chosen.items())


@pytest.mark.parametrize(("name", "value"), [("momentum", 1.0), ("weight_decay", -1.0), ("weight_decay", float("nan"))])
def test_training_settings_out_of_range_are_one_line(name, value):
    with pytest.raises(ValueError, match=name.replace("_", "[-_]")) as caught:
        make_config(**{name: value})
    assert "\n" not in str(caught.value)
