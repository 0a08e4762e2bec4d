#!/usr/bin/env python3
"""Print a command of README.md as it stands there: ``.ci/readme_command.py "Install it and run the tests"``.

The command is the first ``sh`` block after the line that begins with the given words.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[1] / "README.md"


def command(text: str, after: str) -> str:
    """Return the first ``sh`` block of `text` after the line that begins with `after`, else raise ValueError."""
    found = re.search(rf"^{re.escape(after)}.*?^```sh\n(.+?)\n```$", text, re.DOTALL | re.MULTILINE)
    if found is None:
        raise ValueError(f"Expected a line {after!r} and an `sh` block after it, got one of them at most")
    return found[1]


if __name__ == "__main__":
    print(command(README.read_text(encoding="utf-8"), sys.argv[1]))
