"""The shell's completion of component names, asked as a shell asks: through the completion's environment variable."""

import os
import subprocess
import sys

import pytest

from advbench.cli.completion import names_of
from advbench.registry import registry
from advbench.registry.schemes import KINDS, listed

ASK = (
    "import sys; sys.argv = ['advbench']; from advbench.cli.app import main\n"
    "try:\n    main()\n"
    "finally:\n    print(*(name for name in ('torch', 'numpy', 'pandas') if name in sys.modules), file=sys.stderr)"
)


def shell(words: str) -> list[str]:
    """What bash is offered for the last of these words; none of the heavy packages may be imported for it."""
    environment = {
        "_ADVBENCH_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split(" ")) - 1),
    }
    found = subprocess.run([sys.executable, "-c", ASK], env=os.environ | environment, capture_output=True, text=True)
    assert found.stderr.strip() == ""
    return found.stdout.split()


@pytest.mark.parametrize(
    ("words", "among", "kind"),
    [
        ("advbench run --attack ", ["fgsm", "pgd", "foolbox/"], "attacks"),
        ("advbench run --defense ", ["none", "pgd-linf", "own"], "defenses"),
        ("advbench run --architecture ", ["gu2014/convnet", "torchvision/", "own:"], "architectures"),
        ("advbench run --substitute ", ["gu2014/convnet"], "architectures"),
        ("advbench run --dataset ", ["digits", "npz:", "zca:"], "datasets"),
        ("advbench evaluate net.py:make --attack ", ["auto"], "attacks"),
        ("advbench evaluate net.py:make --dataset ", ["digits"], "datasets"),
        ("advbench conformance ", ["square"], "attacks"),
    ],
)
def test_a_shell_is_offered_every_name_without_torch(words, among, kind):
    offered = shell(words)
    assert set(among) <= set(offered)
    assert sorted(offered) == sorted({*registry.of(kind).names(), *(scheme.prefix for scheme in listed(kind))})


@pytest.mark.parametrize(
    ("kind", "text", "expected"),
    [
        ("attacks", "hop", ["hop-skip-jump"]),
        ("attacks", "fgsm,hop", ["fgsm,hop-skip-jump"]),
        ("attacks", "pgd(steps=3,step_size=0.1),hop", ["pgd(steps=3,step_size=0.1),hop-skip-jump"]),
        ("attacks", "pgd(steps=3,", []),
        ("attacks", "pgd(", []),
        ("attacks", "adv", ["adv-lib/"]),
        ("defenses", "tra", ["trades", "trades-l2"]),
        ("datasets", "kmn", ["kmnist"]),
        ("datasets", "npz:../a", []),
        ("attacks", "\N{CYRILLIC SMALL LETTER ER}gd", []),
        ("attacks", "\0", []),
        ("architectures", "gu2014/n", ["gu2014/n100-100-10", "gu2014/n200-200-10"]),
        ("parts", "sd", ["sdae"]),
    ],
)
def test_the_last_name_of_a_list_is_completed(kind, text, expected):
    assert [completed for completed, _ in names_of(kind)(text)] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_after_a_comma_and_at_the_start_every_name_is_offered(kind):
    start = [completed for completed, _ in names_of(kind)("")]
    assert set(registry.of(kind).names()) <= set(start)
    assert [completed for completed, _ in names_of(kind)("first,")] == [f"first,{name}" for name in start]


def test_the_script_for_a_shell_is_shown_on_request():
    command = [sys.executable, "-m", "advbench", "--help"]
    text = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | {"COLUMNS": "200"}).stdout
    assert "--install-completion" in text
    assert "--show-completion" in text
