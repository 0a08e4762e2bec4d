import dataclasses
import subprocess
import sys

import pytest

from advbench.registry import registry
from advbench.registry.specs import Spec


@pytest.mark.parametrize("kind", registry.KINDS)
def test_every_name_resolves_and_describes_itself_with_its_paper(kind):
    for name in registry.names(kind):
        assert callable(registry.factory(kind, name))
        line = registry.describe(kind, name)
        assert line
        assert not line.startswith("unavailable")


@pytest.mark.parametrize("kind", ["attacks", "defenses", "parts"])
def test_a_component_comes_back_from_its_content(kind):
    for name in registry.names(kind):
        component = registry.create(kind, Spec(name))
        content = registry.content(kind, Spec(name), component)
        assert registry.restore(kind, content) == component
        assert set(content["arguments"]) == {field.name for field in dataclasses.fields(component)}


def test_an_unknown_name_gets_a_hint():
    with pytest.raises(registry.UnknownNameError, match=r"did you mean .*pgd"):
        registry.create("attacks", Spec("pdg"))
    with pytest.raises(ValueError, match="did you mean steps"):
        registry.create("attacks", Spec.of("pgd", {"step": 3}))


def test_importing_the_registry_imports_no_component():
    code = "import advbench.registry, sys; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_broken_plug_in_is_one_line(monkeypatch):
    monkeypatch.setattr(registry, "table", lambda kind: {"bad": "no_such_package.module:thing"})
    assert registry.describe("attacks", "bad").startswith("unavailable")
    with pytest.raises(ValueError, match="'bad' cannot be loaded: ModuleNotFoundError") as caught:
        registry.factory("attacks", "bad")
    assert "\n" not in str(caught.value)
