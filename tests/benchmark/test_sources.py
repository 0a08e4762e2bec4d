"""A key covers what runs, and nothing else: changed code is another task, changed prose is not."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from advbench.config import make_config
from advbench.plan import keys
from advbench.plan.keys import MODULES, VERSIONED
from advbench.plan.plan import make_plan
from advbench.registry import sources
from advbench.registry.sources import Sources, closure, source_hash

RUNNING = sources._own_sources().folders


def names(folders):
    """Every module of advbench in these folders, with its file."""
    found = {}
    for package, folder in folders.items():
        for path in Path(folder).rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join([package, *parts]).removesuffix(".__init__")] = path
    where = Sources(folders)
    return {module: Path(where.path(module)) for module in sorted(found) if where.path(module)}


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    """The folders of a copy of the package."""
    root = tmp_path_factory.mktemp("copy")
    ignored = shutil.ignore_patterns("published", "__pycache__", "*.json", "*.toml", "*.html", "*.css", "*.js")
    for package, folder in RUNNING.items():
        shutil.copytree(folder, root / package, ignore=ignored)
    return {package: root / package for package in RUNNING}


def hashes(folders):
    """The hash of each kind's code."""
    found = Sources(folders)
    return {kind: found.hash(module) for kind, module in MODULES.items()}


def test_a_copy_has_the_hashes_of_the_original(copied):
    assert hashes(copied) == hashes({package: Path(folder) for package, folder in RUNNING.items()})


def test_a_changed_line_changes_the_kinds_that_reach_it_and_no_other(copied):
    before, reached = hashes(copied), {kind: closure(module) for kind, module in MODULES.items()}
    changed = dict.fromkeys(MODULES, 0)
    for module, path in names(copied).items():
        code = path.read_bytes()
        path.write_bytes(code + b"\n_CHANGED = 1\n")
        after = hashes(copied)
        path.write_bytes(code)
        for kind in MODULES:
            assert (after[kind] != before[kind]) == (module in reached[kind]), (kind, module)
            changed[kind] += after[kind] != before[kind]
    assert changed == {kind: len(reached[kind]) for kind in MODULES}


def test_prose_and_layout_change_no_hash(copied):
    before = hashes(copied)
    kept = {path: path.read_bytes() for path in names(copied).values()}
    for path, code in kept.items():
        tree = ast.parse(code)
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
                node.value = ast.Constant("Another docstring.")
        path.write_text(f"# A comment.\n\n{ast.unparse(tree)}\n", encoding="utf-8")
    after = hashes(copied)
    for path, code in kept.items():
        path.write_bytes(code)
    assert after == before


ATTACK = '''
"""An attack."""
from dataclasses import dataclass

@dataclass
class Attack:
    """What it does."""

    steps: int = 40
    """Gradient steps."""

    def run(self, x, scale=1.0):
        """Return images."""
        return x * scale  # in place of a step
'''


def read(text):
    return sources._parsed(text.encode())[0]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""An attack."""', ""),
        ('    """What it does."""\n', ""),
        ('    """Gradient steps."""\n', ""),
        ('        """Return images."""\n', '        """Return other\n        images."""\n'),
        ("  # in place of a step", ""),
        ("return x * scale", "return (\n            x\n            * scale)"),
        ("\n", "\r\n"),
        ("1.0", "1.00"),
    ],
)
def test_prose_is_no_code(old, new):
    changed = ATTACK.replace(old, new)
    assert changed != ATTACK
    assert read(changed) == read(ATTACK)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("scale=1.0", "scale=1"),
        ("scale=1.0", "scale=2.0"),
        ("steps: int = 40", "steps: int = 41"),
        ("@dataclass\n", "@dataclass(frozen=True)\n"),
        ("x * scale", "scale * x"),
        ("x * scale", "'x * scale'"),
        ("return x * scale", "x * scale"),
        ("self, x, scale=1.0", "self, x, *, scale=1.0"),
    ],
)
def test_a_change_of_code_changes_the_hash(old, new):
    assert old in ATTACK
    assert read(ATTACK.replace(old, new)) != read(ATTACK)


def test_the_hash_of_a_text_is_the_same_for_every_version_of_python():
    text = ATTACK + "def f(*, a, b=None): return {**a, 'b': f'{b!r:>{a}}'}, [*b], lambda: ..., 'é', -1e-3, 2j, b'\\0'\n"
    assert read(text) == "de3096f65dcccec82bf9ebf69215b857b7f17f7b7567471b18269d7ca5e25c6f"


def test_a_file_that_is_no_python_counts_as_it_is():
    assert read("print 1") != read("print 2")


def package(root, **files):
    """A package of these modules; two underscores stand for a folder."""
    for name, text in files.items():
        path = root.joinpath(*name.split("__")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    for folder in {path.parent for path in root.rglob("*.py")}:
        (folder / "__init__.py").touch()
    return root


@pytest.mark.parametrize(
    ("code", "reached"),
    [
        ("import p.inner.b", {"p.inner", "p.inner.b"}),
        ("import p.inner.b as b, os", {"p.inner", "p.inner.b"}),
        ("from p import inner", {"p.inner"}),
        ("from p.inner import b", {"p.inner", "p.inner.b"}),
        ("from p.inner.b import name", {"p.inner", "p.inner.b"}),
        ("from p.inner.b import *", {"p.inner", "p.inner.b"}),
        ("from .inner import b", {"p.inner", "p.inner.b"}),
        ("from . import c", {"p.c", "p.inner", "p.inner.b"}),
        ("def f():\n    from p import c", {"p.c", "p.inner", "p.inner.b"}),
        ("from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import p.c", set()),
        ("import typing\nif typing.TYPE_CHECKING:\n    import p.c\nelse:\n    import p.inner", {"p.inner"}),
        ("import elsewhere.c, p2", set()),
        ("'import p.c'", set()),
    ],
)
def test_what_an_import_reaches(tmp_path, code, reached):
    files = {"a": code, "c": "from p.inner.b import name", "inner__b": "import p.a\nname = 1"}
    folder = package(tmp_path / "anywhere", **files)
    assert Sources({"p": folder}).closure("p.a") == {"p", "p.a"} | reached


def test_a_craft_is_keyed_by_all_that_attacks(copied):
    assert closure(MODULES["craft"]) >= {
        MODULES["craft"],
        "advbench.attacks.access",
        "advbench.attacks.capabilities",
        "advbench.attacks.transfer",
        "advbench.tasks.compiling",
        "advbench.tasks.evaluation",
        "advbench.zoo.checkpoints",
    }
    path = copied["advbench.attacks"] / "capabilities.py"
    code, before = path.read_text(), hashes(copied)["craft"]
    assert "def with_stop(" in code
    path.write_text(code.replace("def with_stop(", "def with_stop(unused=None, *, ", 1))
    after = hashes(copied)["craft"]
    path.write_text(code)
    assert after != before


def test_a_training_is_keyed_by_nothing_that_attacks_plans_or_reports():
    reached = closure(MODULES["train"])
    assert reached >= {
        "advbench.tasks.models",
        "advbench.zoo.training",
        "advbench.zoo.optimizers",
        "advbench.defenses.defended",
    }
    rooms = {"attacks", "reports", "results", "plan", "engine", "cli"}
    assert not {name for name in reached if name.split(".")[1:2] and name.split(".")[1] in rooms}


@pytest.mark.parametrize("kind", ["train", "craft"])
def test_what_the_module_of_a_kind_imports_is_in_its_closure(kind):
    """Python's own account of what an import loads; look-ups, and what only they load, aside."""
    code = f"import sys, {MODULES[kind]}; print(*(name for name in sys.modules if name.partition('.')[0] == 'advbench'))"
    loaded = set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())
    through_lookups = set().union(*(closure(module) for module in sources._LOOKUPS))
    missing = loaded - closure(MODULES[kind])
    assert missing <= through_lookups
    assert not missing & {
        "advbench.tasks.context",
        "advbench.tasks.models",
        "advbench.tasks.evaluation",
        "advbench.zoo.training",
    }


def test_no_key_reaches_a_look_up_and_the_tables_hold_no_code():
    for module in MODULES.values():
        assert not closure(module) & sources._LOOKUPS
    for module in ("advbench.attacks", "advbench.defenses", "advbench.zoo"):
        tree = ast.parse(Path(sources._own_sources().path(module)).read_bytes())
        assert {type(node) for node in tree.body} <= {ast.Expr, ast.Assign, ast.AnnAssign}


def test_hashing_imports_nothing():
    code = (
        "import sys; from advbench.registry.sources import source_hash;"
        "source_hash('advbench.tasks.models'); source_hash('advbench.attacks.pgd'); source_hash('safetensors.torch');"
        "names = ('torch', 'safetensors', 'advbench.tasks.models', 'advbench.zoo');"
        "raise SystemExit(any(name in sys.modules for name in names))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_plug_in_is_hashed_with_its_own_package_and_what_it_takes_of_advbench(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    attack = "from plug import helper\nfrom advbench.attacks import balls\nraise RuntimeError"
    package(tmp_path / "plug", attack=attack, helper="A = 1")
    (tmp_path / "alone.py").write_text("A = 1")

    assert closure("plug.attack") >= {"plug.attack", "plug.helper", "advbench.attacks.balls"}
    before = fresh("plug.attack"), fresh("alone")
    (tmp_path / "plug" / "helper.py").write_text("A = 2")
    (tmp_path / "alone.py").write_text("A = 2")
    after = fresh("plug.attack"), fresh("alone")
    assert before[0] != after[0]
    assert before[1] != after[1]
    monkeypatch.setattr(sources.metadata, "packages_distributions", lambda: {"alone": ["alone"], "beside": ["alone"]})
    monkeypatch.setattr(sources.metadata, "version", lambda name: "1.0")
    assert fresh("alone") != after[1]
    assert fresh("no_such_package.module") != fresh("no_such_package.other")
    versioned = fresh("alone")
    (tmp_path / "beside.py").write_text("A = 1")
    assert fresh("alone") != versioned, "the other module of the same distribution"


PLUGIN = {
    "plug/__init__.py": "",
    "plug/attack.py": "import importlib\nhelper = importlib.import_module('plug.' + 'inner.by_name')",
    "plug/inner/by_name.py": "STEP = 1",
    "plug/fast.abi3.so": "compiled",
    "plug/notes.txt": "a text",
    "plug/__pycache__/attack.cpython-311.pyc": "cached",
    "plug/.git/hook.py": "A = 1",
}


@pytest.mark.parametrize(
    ("changed", "counts"),
    [
        ({"plug/attack.py": "STEP = 2"}, True),
        ({"plug/inner/by_name.py": "STEP = 2"}, True),
        ({"plug/inner/by_name.py": "STEP = 1  # a comment"}, False),
        ({"plug/fast.abi3.so": "compiled again"}, True),
        ({"plug/another.py": ""}, True),
        ({"plug/notes.txt": "another text"}, False),
        ({"plug/advbench-out/run.json": "{}"}, False),
        ({"plug/__pycache__/attack.cpython-311.pyc": "cached again"}, False),
        ({"plug/.git/hook.py": "A = 2"}, False),
    ],
)
def test_a_plug_in_that_changes_without_a_new_version_has_another_hash(tmp_path, monkeypatch, changed, counts):
    def written(files):
        for name, text in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(text)
        return fresh("plug.attack")

    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sources.metadata, "packages_distributions", lambda: {"plug": ["plug"]})
    monkeypatch.setattr(sources.metadata, "version", lambda name: "1.0")
    before = written(PLUGIN)
    assert written({}) == before
    assert (written(changed) != before) == counts


def test_a_package_that_is_spread_over_folders_counts_with_all_of_them(tmp_path, monkeypatch):
    for part in ("one", "other"):
        (tmp_path / part / "spread").mkdir(parents=True)
        (tmp_path / part / "spread" / f"{part}.py").write_text("A = 1")
        monkeypatch.syspath_prepend(tmp_path / part)
    before = fresh("spread.one")
    for part in ("one", "other"):
        (tmp_path / part / "spread" / f"{part}.py").write_text("A = 2")
        before, earlier = fresh("spread.one"), before
        assert before != earlier


def fresh(module):
    """The hash of a module as a new process finds it."""
    sources._sources_beside.cache_clear()
    sources.package_hash.cache_clear()
    found = source_hash.__wrapped__(module)
    sources._sources_beside.cache_clear()
    sources.package_hash.cache_clear()
    return found


# --- the keys of a plan


@pytest.fixture
def plan_of(settings, cache):
    def make(**changes):
        return make_plan(make_config(**(settings | changes)), measure=False)

    return make


_OF_SOME_CELLS = ("substitute", "diagnose", "unit-test", "known-noise", "calibrate")


def by_kind(plan):
    found = {kind: set() for kind in MODULES}
    for task in plan.tasks.values():
        found[task.kind].add(task.key)
    return found


def test_every_kind_has_its_code_and_the_version_of_torch_in_its_key_where_numbers_depend_on_it(plan_of, monkeypatch):
    plan = plan_of(draws=None, unit_test=True, known_noise=True)
    before = by_kind(plan)
    assert all(before.values())
    for task in plan.tasks.values():
        assert type(task.content).__module__ == MODULES[task.kind]
        assert keys.keyed(task.content)["code"] == source_hash(MODULES[task.kind])
        assert ("versions" in keys.keyed(task.content)) == (task.kind in VERSIONED)
    assert set(keys.versions()) == {"torch", "torchvision"}
    assert frozenset({"clean", "diagnose", "unit-test", "known-noise", "calibrate", "craft", "score"}) == VERSIONED
    monkeypatch.setattr(keys, "versions", lambda: {"torch": "0.0", "torchvision": "0.0"})
    after = by_kind(plan_of(draws=None, unit_test=True, known_noise=True))
    for kind in MODULES:
        assert (after[kind] == before[kind]) if kind not in VERSIONED else not after[kind] & before[kind], kind


@pytest.mark.parametrize("kind", MODULES)
def test_the_changed_code_of_a_kind_is_another_task(plan_of, monkeypatch, kind):
    before = by_kind(plan_of(draws=None, unit_test=True, known_noise=True))
    monkeypatch.setattr(keys, "MODULES", MODULES | {kind: "advbench"})
    after = by_kind(plan_of(draws=None, unit_test=True, known_noise=True))
    assert not after[kind] & before[kind]
    if kind != "score":
        assert not after["score"] & before["score"] or kind in _OF_SOME_CELLS


def test_planning_hashes_a_model_once_and_its_looks_once(plan_of, monkeypatch):
    asked = []

    def counted(self, content, of=keys.Keys.of):
        asked.append(content.kind)
        return of(self, content)

    monkeypatch.setattr(keys.Keys, "of", counted)
    plan = plan_of(epsilon="0.1,0.2", attack="fgsm,pgd(steps=3)")
    models = sum(task.kind == "train" for task in plan.tasks.values())
    assert asked.count("clean") == models
    assert asked.count("diagnose") == 2 * models
    assert asked.count("score") == len(plan.cells)
