"""The front door: what it shows, and that every parameter of the public functions is spelled out and documented."""

import inspect
import subprocess
import sys

import pytest

import advbench
from advbench.config import Config, RunSettings


def test_dir_shows_the_public_names_before_any_is_used():
    code = "import advbench, sys; print(*dir(advbench)); raise SystemExit('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in found if not name.startswith("__")] == sorted(set(advbench.__all__) - {"__version__"})
    assert {"__version__", "__doc__"} <= set(found)


def test_every_public_name_is_there_and_an_unknown_one_is_an_attribute_error():
    for name in advbench.__all__:
        assert getattr(advbench, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'evaluat'"):
        advbench.evaluat  # noqa: B018


def test_the_settings_of_a_run_are_the_fields_of_its_configuration():
    assert list(RunSettings.__annotations__) == list(Config.model_fields)
    parameters = inspect.signature(advbench.run).parameters
    assert list(parameters) == ["config_file", "watch", *Config.model_fields]
    assert all(one.kind is inspect.Parameter.KEYWORD_ONLY for name, one in parameters.items() if name != "config_file")


PUBLIC = [advbench.run, advbench.evaluate, advbench.attack, advbench.adversarial_images, advbench.history]


@pytest.mark.parametrize("function", PUBLIC)
def test_every_parameter_of_a_public_function_is_typed_and_named_in_its_documentation(function):
    documented = inspect.getdoc(function)
    for name, parameter in inspect.signature(function).parameters.items():
        assert parameter.kind is not inspect.Parameter.VAR_KEYWORD
        assert parameter.annotation is not inspect.Parameter.empty, name
        assert name in documented, name


def test_an_unknown_setting_is_refused_in_one_line():
    with pytest.raises(ValueError, match="unknown setting 'epsilom'"):
        advbench.run(epsilom=0.1)
