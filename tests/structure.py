"""What the structure of a checkout measures: ``python tests/structure.py [FOLDER]``, on this tree or on another one.

Per room: modules, lines, functions above 40 lines, ``Any`` (and ``object`` under ``cast``), and ``content["..."]``.
Over the whole package: rooms that import each other in a circle, modules that the import contract names no layer for, and
classes that share a name. Only text and syntax trees are read; nothing is imported.
"""

from __future__ import annotations

import ast
import sys
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOP = {
    "advbench": "benchmark",
    "advbench.attacks": "attacks",
    "advbench.defenses": "defenses",
    "advbench.reports": "reports",
    "advbench.results": "results",
    "advbench.zoo": "zoo",
}
LONG = 40


def modules(root: Path) -> dict[str, Path]:
    """The modules of the package by name."""
    found = {}
    for package, folder in TOP.items():
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


def room(name: str) -> str:
    """The room of a module: a folder of the root, or a folder inside ``benchmark/``."""
    parts = name.split(".")
    if len(parts) > 1 and f"advbench.{parts[1]}" in TOP:
        return parts[1]
    return f"benchmark/{parts[1]}" if len(parts) > 2 else "benchmark"


def trees(root: Path) -> dict[str, ast.Module]:
    """The syntax tree of every module."""
    return {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in modules(root).items()}


def type_checking(tree: ast.Module) -> set[int]:
    """The ids of the nodes under ``if TYPE_CHECKING:``."""
    blocks = [
        node for node in ast.walk(tree) if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
    ]
    return {id(inner) for block in blocks for inner in ast.walk(block)}


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """The modules of the package that a module imports when it is imported or when its functions run."""
    found, skipped = set(), type_checking(tree)
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {each if each in known else node.module for each in inner}
    return {each for each in found if each in known and each != name}


def cycles(edges: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components of more than one node (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for after in sorted(edges.get(node, ())):
            if after not in index:
                visit(after)
            if after in stack:
                low[node] = min(low[node], low[after])
        if low[node] == index[node]:
            component = []
            while True:
                component.append(stack.pop())
                if component[-1] == node:
                    break
            if len(component) > 1:
                found.append(sorted(component))

    for node in sorted(edges):
        if node not in index:
            visit(node)
    return found


def room_cycles(root: Path) -> list[list[str]]:
    """The rooms that import each other in a circle."""
    parsed = trees(root)
    edges: dict[str, set[str]] = defaultdict(set)
    for name, tree in parsed.items():
        mine = room(name)
        # The front door and what stands beside it in `benchmark/` are no room, but several: each module is its own.
        mine = name if mine == "benchmark" else mine
        for each in imports(name, tree, set(parsed)):
            other = each if room(each) == "benchmark" else room(each)
            if other not in (mine, "advbench"):
                edges[mine].add(other)
    return cycles(edges)


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """All functions and methods."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def lines_of_code(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """The lines of a function from its signature on, without its docstring."""
    documented = ast.get_docstring(node, clean=False) is not None
    text = node.body[0]
    prose = (text.end_lineno or text.lineno) - text.lineno + 1 if documented else 0
    return (node.end_lineno or node.lineno) - node.lineno + 1 - prose


def untyped(tree: ast.Module) -> int:
    """``Any`` in the code beyond its import, aliases of it included, and ``cast`` from ``object``."""
    names = sum(isinstance(node, ast.Name) and node.id == "Any" for node in ast.walk(tree))
    casts = sum(
        isinstance(node, ast.Call) and ast.unparse(node.func) in ("cast", "typing.cast") and "object" in ast.unparse(node)
        for node in ast.walk(tree)
    )
    return names + casts


def by_name(tree: ast.Module) -> int:
    """Accesses such as ``content["seed"]``."""
    return sum(
        isinstance(node, ast.Subscript)
        and ast.unparse(node.value).split(".")[-1] == "content"
        and isinstance(node.slice, ast.Constant)
        for node in ast.walk(tree)
    )


def shared_names(root: Path) -> dict[str, list[str]]:
    """Public classes that share a name, with their modules."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, tree in trees(root).items():
        for node in tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                found[node.name].append(name)
    return {each: where for each, where in sorted(found.items()) if len(where) > 1}


def without_layer(root: Path) -> list[str]:
    """The modules and packages right below ``advbench`` that the contract of layers does not name."""
    contracts = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    named: set[str] = set()
    for contract in contracts:
        if contract["type"] == "layers" and contract["containers"] == ["advbench"]:
            named |= {each.strip(" ()") for layer in contract["layers"] for each in layer.replace(":", "|").split("|")}
    direct = {name.split(".")[1] for name in modules(root) if "." in name}
    return sorted(direct - named)


def report(root: Path) -> str:
    """The measures as text."""
    parsed = trees(root)
    rows: dict[str, list[int]] = defaultdict(lambda: [0] * 6)
    for name, tree in parsed.items():
        spans = [lines_of_code(node) for node in functions(tree)]
        count = len(modules(root)[name].read_text(encoding="utf-8").splitlines())
        measured = (1, count, len(spans), sum(span > LONG for span in spans), untyped(tree), by_name(tree))
        rows[room(name)] = [before + more for before, more in zip(rows[room(name)], measured, strict=True)]
    heads = ("modules", "lines", "functions", f"> {LONG} lines", "Any", 'content["..."]')
    text = [f"{'room':26}" + "".join(f"{head:>16}" for head in heads)]
    text += [f"{each:26}" + "".join(f"{value:16}" for value in rows[each]) for each in sorted(rows)]
    inside = [
        sum(column)
        for column in zip(*(values for each, values in rows.items() if each.startswith("benchmark")), strict=True)
    ]
    text.append(f"{'all of benchmark/':26}" + "".join(f"{value:16}" for value in inside))
    circles = room_cycles(root)
    shared = shared_names(root)
    text += ["", f"room cycles: {len(circles)}", *(f"  {' <-> '.join(circle)}" for circle in circles)]
    text += [f"modules in no layer: {len(without_layer(root))}", *(f"  {each}" for each in without_layer(root))]
    text += [f"class names that are shared: {len(shared)}"]
    text += [f"  {each}: {', '.join(where)}" for each, where in shared.items()]
    return "\n".join(text)


if __name__ == "__main__":
    print(report(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT))
