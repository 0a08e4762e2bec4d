"""Source hashes: what a result depends on in the code, so that a changed attack never answers with old numbers."""

from __future__ import annotations

import ast
import hashlib
from functools import cache
from importlib import metadata, util
from pathlib import Path

_PACKAGE = "advbench"
_LOOKUPS = frozenset(
    {"advbench.registry", "advbench.attacks", "advbench.defenses", "advbench.zoo", "advbench.zoo.architectures"}
)
"""Modules that only find others: adding a component there changes no result."""


@cache
def source_hash(module: str) -> str:
    """SHA-256 over the source of `module` and of every advbench module that it imports, directly or not.

    For a module of another package: its distribution's name and version, and its own source.
    """
    digest = hashlib.sha256()
    for name in sorted(_closure(module)):
        digest.update(name.encode())
        path = _path(name)
        digest.update(path.read_bytes().replace(b"\r\n", b"\n") if path else b"")
    package = module.partition(".")[0]
    if package != _PACKAGE:
        for distribution in sorted(set(metadata.packages_distributions().get(package, ()))):
            digest.update(f"{distribution}=={metadata.version(distribution)}".encode())
    return digest.hexdigest()


def _closure(module: str) -> set[str]:
    """`module` and the advbench modules that it reaches."""
    found: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(_imports(name))
    return found


@cache
def _imports(module: str) -> frozenset[str]:
    path = _path(module)
    if path is None:
        return frozenset()
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                names.add(inner if node.module.startswith(_PACKAGE) and _path(inner) else node.module)
    return frozenset(name for name in names if name.startswith(f"{_PACKAGE}.") and name not in _LOOKUPS and _path(name))


@cache
def _path(module: str) -> Path | None:
    try:
        spec = util.find_spec(module)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
