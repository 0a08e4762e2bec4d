"""Source hashes: what a result depends on in the code, so that changed code never answers with old numbers.

Code counts by its syntax tree: comments, docstrings and layout change no hash. No module is imported to be hashed.
"""

from __future__ import annotations

import ast
import hashlib
import os
from collections.abc import Iterator, Mapping
from functools import cache, lru_cache
from importlib import metadata, util
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

_PACKAGE = "advbench"
_ROOMS = ("attacks", "defenses", "reports", "results", "zoo")
"""The packages of advbench that lie in folders of their own where it runs from a checkout."""

_LOOKUPS = frozenset(
    {
        "advbench",
        "advbench.registry.registry",
        "advbench.registry.schemes",
        "advbench.attacks",
        "advbench.defenses",
        "advbench.zoo",
        "advbench.zoo.architectures",
    }
)
"""Modules that only find others: adding a component there changes no result. A key names the components that a task uses,
and each of these brings its own hash."""

_UNSEEN = frozenset({"ctx", "kind", "type_comment"})
"""Fields of syntax trees that follow from the rest or mean nothing."""

_FOR_TYPES = frozenset(ast.dump(ast.parse(test, mode="eval").body) for test in ("TYPE_CHECKING", "typing.TYPE_CHECKING"))


@cache
def source_hash(module: str) -> str:
    """SHA-256 over the code of `module` and of every advbench module that it imports, directly or not.

    For a module of another package: its distribution's name and version too, and every module that the distribution
    installs, imported or not, since plug-ins may load modules by name, and may change without a new version.
    """
    digest = hashlib.sha256(_sources(module).hash(module).encode())
    package = module.partition(".")[0]
    if package != _PACKAGE:
        installed = metadata.packages_distributions()
        distributions = sorted(set(installed.get(package, ())))
        for distribution in distributions:
            digest.update(f"{distribution}=={metadata.version(distribution)}".encode())
        packages = {name for name, found in installed.items() if not set(found).isdisjoint(distributions)} | {package}
        for name in sorted(packages - {_PACKAGE}):
            digest.update(package_hash(name).encode())
    return digest.hexdigest()


@cache
def package_hash(package: str) -> str:
    """SHA-256 over the modules in the folders of a package, Python's and compiled ones, none of them imported.

    Python's count by their syntax trees. The hash of a package that cannot be found is that of no module.
    """
    digest = hashlib.sha256()
    for place in _places(package):
        folder = Path(place)
        for path in [folder] if folder.is_file() else _modules_in(folder):
            content = path.read_bytes()
            code = _parsed(content)[0] if path.suffix == ".py" else hashlib.sha256(content).hexdigest()
            digest.update(f"{path.relative_to(folder.parent).as_posix()} {code}\n".encode())
    return digest.hexdigest()


def closure(module: str) -> frozenset[str]:
    """`module` and the modules that count in its `source_hash`."""
    return frozenset(_sources(module).closure(module))


class Sources:
    """The modules in some folders, each read once and none imported.

    folders: where packages lie, by dotted name; packages below them lie in folders below theirs. A module without a package
    lies in a file.
    """

    def __init__(self, folders: Mapping[str, Path]) -> None:
        self.folders = {package: str(folder) for package, folder in folders.items()}
        self._paths: dict[str, str | None] = {}
        self._read: dict[str, tuple[str, frozenset[str]]] = {}

    def hash(self, module: str) -> str:
        """SHA-256 over the code of `module` and of what it reaches."""
        lines = (f"{name} {self._module(name)[0]}\n" for name in sorted(self.closure(module)))
        return hashlib.sha256("".join(lines).encode()).hexdigest()

    def closure(self, module: str) -> set[str]:
        """`module` and the modules that it reaches.

        Imports inside functions count, those for type checkers do not. A module brings the packages that it lies in.
        Look-ups count only where they are `module` itself.
        """
        found: set[str] = set()
        waiting = {module}
        while waiting:
            name = waiting.pop()
            found.add(name)
            waiting |= self._module(name)[1] - found
        return found

    def path(self, module: str) -> str | None:
        """The file of a module; None where it has none in these folders."""
        if module not in self._paths:
            self._paths[module] = self._find(module)
        return self._paths[module]

    def _find(self, module: str) -> str | None:
        package = next((name for name in (module, *_parents(module)) if name in self.folders), None)
        if package is None:
            return None
        if module == package and self.folders[package].endswith(".py"):
            return self.folders[package]
        path = os.path.join(self.folders[package], *module[len(package) :].split(".")[1:])  # noqa: PTH118 - three times as fast
        files = [os.path.join(path, "__init__.py"), *([f"{path}.py"] if module != package else [])]  # noqa: PTH118
        return next((file for file in files if os.path.isfile(file)), None)  # noqa: PTH113

    def _module(self, module: str) -> tuple[str, frozenset[str]]:
        """The hash of a module's own code, and the modules that it brings."""
        if module not in self._read:
            path = self.path(module)
            code, imports = _parsed(Path(path).read_bytes()) if path else ("", ())
            package = module if path and path.endswith("__init__.py") else module.rpartition(".")[0]
            names = set(_parents(module))
            for imported, attribute in imports:
                base = util.resolve_name(imported, package) if imported.startswith(".") else imported
                inner = f"{base}.{attribute}"
                name = inner if attribute and self.path(inner) else base
                names |= {name, *_parents(name)}
            self._read[module] = code, frozenset(name for name in names if name not in _LOOKUPS and self.path(name))
        return self._read[module]


def _parents(module: str) -> Iterator[str]:
    """The packages that a module lies in, the innermost first."""
    while "." in module:
        module = module.rpartition(".")[0]
        yield module


@cache
def _own_sources() -> Sources:
    """The running advbench; finding its folders imports nothing but its front door."""
    return Sources(_located(_PACKAGE, *(f"{_PACKAGE}.{room}" for room in _ROOMS)))


@cache
def _sources_beside(package: str) -> Sources:
    """The running advbench and another package."""
    own = _own_sources().folders
    return Sources({name: Path(folder) for name, folder in own.items()} | _located(package))


def _sources(module: str) -> Sources:
    package = module.partition(".")[0]
    return _own_sources() if package == _PACKAGE else _sources_beside(package)


def _located(*packages: str) -> dict[str, Path]:
    """The folders of packages that can be found, without importing them; the file where a module has no package."""
    found = {package: _places(package) for package in packages}
    return {package: Path(places[0]) for package, places in found.items() if places and not _compiled(places[0])}


def _places(package: str) -> list[str]:
    """The folders of a package, several if it is spread over them; the file of a module without a package; else nothing."""
    try:
        spec = util.find_spec(package)
    except (ImportError, ValueError):
        return []
    if spec and spec.submodule_search_locations:
        return list(spec.submodule_search_locations)
    file = (spec and spec.origin) or ""
    return [file] if file.endswith(".py") or _compiled(file) else []


def _compiled(file: str) -> bool:
    return file.endswith(tuple(EXTENSION_SUFFIXES))


def _modules_in(folder: Path) -> list[Path]:
    """The modules in a folder and below, sorted; hidden folders aside."""
    found = []
    for place, inner, files in os.walk(folder):
        inner[:] = [name for name in inner if not name.startswith(".") and name != "__pycache__"]
        found += [Path(place, name) for name in files if name.endswith(".py") or _compiled(name)]
    return sorted(found)


@lru_cache(maxsize=1024)
def _parsed(source: bytes) -> tuple[str, tuple[tuple[str, str], ...]]:
    """The hash of a file's code, and its imports: (module, attribute), the attribute empty for a plain import.

    A file that this version of Python cannot parse counts with its bytes.
    """
    words: list[str] = []
    imports: list[ast.Import | ast.ImportFrom] = []
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return hashlib.sha256(source).hexdigest(), ()
    _spell(tree, words, imports)
    found = dict.fromkeys(
        ("." * node.level + (node.module or ""), alias.name) if isinstance(node, ast.ImportFrom) else (alias.name, "")
        for node in imports
        for alias in node.names
    )
    return hashlib.sha256(" ".join(words).encode()).hexdigest(), tuple(found)


def _spell(node: ast.AST, words: list[str], imports: list[ast.Import | ast.ImportFrom]) -> None:
    """Append a syntax tree as words without positions, the same for every version of Python, and the imports in it.

    Empty fields are left out: newer versions have more of them. So is what is never executed to any effect: docstrings and
    other lone constants, `pass`, and what only type checkers read.
    """
    kind = type(node)
    if kind is ast.Pass or (kind is ast.Expr and type(node.value) is ast.Constant):  # type: ignore[attr-defined]
        return
    if kind is ast.If and ast.dump(node.test) in _FOR_TYPES:  # type: ignore[attr-defined]
        for inner in node.orelse:  # type: ignore[attr-defined]
            _spell(inner, words, imports)
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        imports.append(node)
    if isinstance(node, ast.JoinedStr):
        node.values = _joined(node.values)
    words.append(kind.__name__ + "(")
    for name in node._fields:
        if name in _UNSEEN:
            continue
        value = getattr(node, name, None)
        if isinstance(value, ast.AST):
            words.append(name)
            _spell(value, words, imports)
        elif isinstance(value, list):
            if value:
                words.append(name + "[")
                for inner in value:
                    if isinstance(inner, ast.AST):
                        _spell(inner, words, imports)
                    else:
                        words.append(ascii(inner))
                words.append("]")
        elif value is not None:
            words += (name, ascii(value))
    words.append(")")


def _joined(values: list[ast.expr]) -> list[ast.expr]:
    """The pieces of an f-string with its texts in one piece each, which some versions of Python 3.12 cut."""
    found: list[ast.expr] = []
    for piece in values:
        last = found[-1] if found else None
        if not isinstance(piece, ast.Constant) or not isinstance(piece.value, str):
            found.append(piece)
        elif isinstance(last, ast.Constant) and isinstance(last.value, str):
            found[-1] = ast.Constant(last.value + piece.value)
        elif piece.value:
            found.append(piece)
    return found
