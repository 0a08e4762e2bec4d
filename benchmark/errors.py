"""Errors of code that is not ours, in one line."""

from __future__ import annotations

import os
import re

DEBUG = "ADVBENCH_DEBUG"
"""The environment variable under which whole tracebacks are printed, in worker processes too."""

_LAST_LINE = re.compile(r"^\w*(?:Error|Exception)\b.*", re.MULTILINE)
_LONGEST_CHAIN = 20


def reason(error: BaseException, limit: int = 300) -> str:
    """The kind and text of an error, and of the innermost one that it came from, at most `limit` characters.

    >>> try:
    ...     try:
    ...         {}["weights"]
    ...     except KeyError as error:
    ...         raise RuntimeError("no model\\nfound") from error
    ... except RuntimeError as error:
    ...     print(reason(error))
    RuntimeError: no model found (KeyError: 'weights')
    """
    outer, inner = _text(error), _text(_innermost(error))
    return (outer if inner in outer else f"{outer} ({inner})")[:limit]


def debugging() -> bool:
    """Whether whole tracebacks are wanted."""
    return bool(os.environ.get(DEBUG))


def _innermost(error: BaseException) -> BaseException:
    for _ in range(_LONGEST_CHAIN):
        before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
        if before is None:
            break
        error = before
    return error


def _text(error: BaseException) -> str:
    """Kind and text without line breaks; of a text that is a traceback itself, as TorchScript's, the last line."""
    try:
        text = str(error)
    except Exception as broken:
        text = f"no text: {type(broken).__name__}"
    lines = _LAST_LINE.findall(text) if "Traceback" in text else []
    return " ".join((lines[-1] if lines else f"{type(error).__name__}: {text}").split()).rstrip(": ")
