"""Component specs: a registered name with arguments, as users write them and as keys hold them."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass, field

Scalar = bool | int | float | str | None
_DEEPEST = 8
"""The levels of lists in an argument."""


@dataclass(frozen=True, slots=True)
class Spec:
    """A registered name and the arguments that the user gave, such as ``pgd(steps=100)``.

    arguments: (name, value) pairs sorted by name; values are JSON scalars or lists of them.
    """

    name: str
    arguments: tuple[tuple[str, object], ...] = field(default=())

    @staticmethod
    def of(name: str, arguments: Mapping[str, object] | None = None) -> Spec:
        """A spec with its arguments in canonical order."""
        return Spec(name, tuple(sorted((key, _frozen(value)) for key, value in (arguments or {}).items())))

    @staticmethod
    def parse(text: str) -> Spec:
        """Read ``name`` or ``name(key=value, ...)`` with Python literals as values; ValueError if it is neither.

        >>> Spec.parse("pgd(steps=100, step_size=0.05)")
        Spec(name='pgd', arguments=(('step_size', 0.05), ('steps', 100)))
        >>> Spec.parse("pgd(100)")
        Traceback (most recent call last):
            ...
        ValueError: Expected name(key=value, ...) such as pgd(steps=100), got 'pgd(100)'
        """
        name, bracket, rest = text.strip().partition("(")
        if not bracket:
            if not name:
                raise ValueError("Expected the name of a component, got an empty text")
            return Spec(name)
        try:
            call = ast.parse(f"f({rest}", mode="eval").body
            if not isinstance(call, ast.Call) or call.args or any(keyword.arg is None for keyword in call.keywords):
                raise ValueError
            arguments = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            bare = _bare(rest)
            hint = f": {bare} is no number, and a text has quotes, '{bare}'" if bare else ""
            raise ValueError(f"Expected name(key=value, ...) such as pgd(steps=100), got {text!r}{hint}") from None
        if not name.strip():
            raise ValueError(f"Expected the name of a component before its arguments, got {text!r}")
        return Spec.of(name.strip(), arguments)

    @property
    def keywords(self) -> dict[str, object]:
        """The arguments as a factory takes them."""
        return dict(self.arguments)

    @property
    def text(self) -> str:
        """What `parse` reads."""
        if not self.arguments:
            return self.name
        return f"{self.name}({', '.join(f'{key}={value!r}' for key, value in self.arguments)})"

    def __str__(self) -> str:
        return self.text


def _bare(rest: str) -> str:
    """The first value among arguments that is a bare word, such as ten in ``steps=ten)``; empty if none is."""
    try:
        call = ast.parse(f"f({rest}", mode="eval").body
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return ""
    keywords = call.keywords if isinstance(call, ast.Call) and not call.args else []
    return next((one.value.id for one in keywords if isinstance(one.value, ast.Name)), "")


@dataclass(frozen=True, slots=True)
class Shown(Spec):
    """A spec that people read as a text of its own, where that of its arguments says little."""

    shown: str = field(default="", compare=False)

    def __str__(self) -> str:
        return self.shown


def split_list(text: str) -> list[str]:
    """Split a comma-separated list of specs, leaving commas inside brackets and quotes alone.

    >>> split_list("fgm, pgd(steps=100, step_size=0.05), square")
    ['fgm', 'pgd(steps=100, step_size=0.05)', 'square']
    """
    parts, depth, quote, current = [], 0, "", ""
    for character in text:
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
        if character == "," and not depth and not quote:
            parts.append(current.strip())
            current = ""
        else:
            current += character
    parts.append(current.strip())
    return [part for part in parts if part]


def canonical(content: object) -> str:
    """The one JSON text of a content: sorted keys, no spaces, no NaN.

    >>> canonical({"steps": 40, "name": "pgd"})
    '{"name":"pgd","steps":40}'
    """
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def _frozen(value: object, depth: int = 0) -> object:
    """`value` with tuples for lists. ValueError for what is no number, text, bool or None, or a list of these."""
    if isinstance(value, list | tuple) and depth < _DEEPEST:
        return tuple(_frozen(item, depth + 1) for item in value)
    if value is not None and not isinstance(value, bool | int | float | str):
        raise ValueError(f"Expected arguments that are numbers, texts or lists of them, got {value!r:.80}")
    return value
