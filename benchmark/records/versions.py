"""The versions of a baseline: the commits that changed its file, or runs one after the other. Never imports torch."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from advbench.files import write_atomically
from advbench.reading import seen
from advbench.records.gating import LARGEST_BASELINE, append_to_summary, read_baseline
from advbench.results.gate import baseline as baselines
from advbench.results.gate.baseline import Snapshot
from advbench.results.gate.steps import Version, VersionHistory, trace
from advbench.results.gate.verdicts import Terms

_FIELDS = ("%H", "%h", "%cs", "%s")
_DIVIDER = "\x1f"
UNCOMMITTED = "working tree"
"""The name of a file's version that no commit has."""


def history(
    *sources: str | Path,
    anchor: str | None = None,
    last: int | None = None,
    alpha: float = 0.01,
    tolerance: float = 0.0,
    checkpoints_only: bool = False,
    across_versions: bool = False,
    fail_on_flags: bool = False,
) -> VersionHistory:
    """Follow a baseline through its versions, each of which is tested against the one before and against a fixed anchor.

    sources: a baseline file that git tracks, which stands for the commits of the current branch that changed it (and for
    what is not committed yet); or several runs in order, each an output folder or a baseline file as it stands. Runs may
    follow the file. anchor: a commit, or one of `sources`, or another folder or file; the first version if None. last: show
    only so many of the newest versions. alpha, tolerance, checkpoints_only, across_versions, fail_on_flags: as in
    `advbench.check`.

    The history's `exit_code` is that of `advbench.check` for the last version. Raises ValueError, in one line, for what
    cannot be read or is no history.

    >>> found = history("advbench-out", "advbench-out")  # a finished run, and the same again
    >>> [step.change is None for step in found.steps], found.exit_code
    ([True, False], 0)
    """
    if last is not None and last < 1:
        raise ValueError(f"Expected `last` >= 1, got {last}")
    terms = Terms(
        alpha=alpha,
        tolerance=tolerance,
        checkpoints_only=checkpoints_only,
        across_versions=across_versions,
        fail_on_flags=fail_on_flags,
    )
    paths = [Path(source) for source in sources]
    tracked = _tracked_file(paths, anchor)
    versions = [version for path in paths for version in (_committed(path) if path == tracked else [_as_it_stands(path)])]
    versions = _named_apart(versions)
    fixed = _anchor(anchor, versions, tracked) if anchor is not None else None
    found = trace(versions, terms, fixed)
    return found if last is None else replace(found, steps=found.steps[-last:])


def write_history(found: VersionHistory, to: str | Path) -> list[Path]:
    """Write a history as history.html and history.json into the folder `to`; returns both files."""
    from advbench.reports.step_texts import to_json
    from advbench.reports.steps import FILES, history_page

    page, data = (Path(to) / name for name in FILES)
    return [write_atomically(page, history_page(found)), write_atomically(data, to_json(found))]


def add_to_summary(found: VersionHistory) -> None:
    """Append the history as Markdown to the file that $GITHUB_STEP_SUMMARY names, where it is set."""
    from advbench.reports.step_texts import to_markdown

    append_to_summary(to_markdown(found))


def _tracked_file(paths: Sequence[Path], anchor: str | None) -> Path | None:
    """The one baseline file among `paths` that stands for its commits; None if there are several, or only folders.

    Raises ValueError for nothing, for one file alone that git does not track, and in a shallow clone if no anchor is named.
    """
    if not paths:
        raise ValueError("Expected a baseline file that git tracks, or several runs, got nothing")
    files = [path for path in paths if not path.is_dir()]
    file = files[0] if len(files) == 1 else None
    if file is not None and _log(file):
        if anchor is None and _is_shallow(file):
            raise ValueError(
                f"Expected all commits of {file}, got a shallow clone, in which the first version is none: `git fetch "
                "--unshallow` (in a GitHub workflow, `fetch-depth: 0`), or name an anchor"
            )
        return file
    if len(paths) == 1:
        what = "no committed file" if file is not None else "one folder"
        raise ValueError(
            f"Expected a baseline file that git tracks, or several runs, got {what} at {paths[0]}: commit what "
            "`advbench baseline` writes, or name the runs in order"
        )
    return None


def _committed(file: Path) -> list[Version]:
    """The versions of a file, a commit each, oldest first; at the end what the file says now if no commit has that."""
    found, text = [], b""
    for commit, name, date, subject in reversed(_log(file)):
        text = _git(file, "cat-file", "blob", f"{commit}:./{file.name}")
        run, problem = _parsed(text)
        found.append(Version(name=name, run=run, commit=commit, date=date, subject=seen(subject), problem=problem))
    if file.is_file() and file.read_bytes() != text:
        found.append(Version(name=UNCOMMITTED, run=read_baseline(file), subject="not committed yet"))
    return found


def _parsed(content: bytes) -> tuple[Snapshot | None, str]:
    """The run of a committed baseline, or why it cannot be read."""
    if len(content) > LARGEST_BASELINE:
        return None, f"Expected at most {LARGEST_BASELINE} bytes, got {len(content)}"
    try:
        return baselines.from_text(content.decode()), ""
    except ValueError as error:
        return None, " ".join(str(error).split())


def _as_it_stands(path: Path) -> Version:
    """A run by its folder or file."""
    return Version(name=seen(str(path)), run=read_baseline(path))


def _named_apart(versions: Sequence[Version]) -> list[Version]:
    """Versions whose names differ: those of a name that came before are numbered."""
    taken: dict[str, int] = {}
    found = []
    for version in versions:
        count = taken[version.name] = taken.get(version.name, 0) + 1
        found.append(version if count == 1 else replace(version, name=f"{version.name} ({count})"))
    return found


def _anchor(name: str, versions: Sequence[Version], file: Path | None) -> Version:
    """The version that `name` stands for: one of `versions`, what the file was at a commit, or another folder or file."""
    named = next((version for version in versions if version.name == name), None)
    if named is not None:
        return named
    if Path(name).exists():
        return _as_it_stands(Path(name))
    commits = _log(file, name) if file is not None and not name.startswith("-") else []
    if file is None or not commits:
        raise ValueError(
            f"Expected `anchor` to be {'a commit that has the file, ' if file else ''}one of the runs, or another folder or "
            f"file, got {name!r}"
        )
    commit, short, date, subject = commits[0]
    known = next((version for version in versions if version.commit == commit), None)
    if known is not None:
        return known
    run, problem = _parsed(_git(file, "cat-file", "blob", f"{commit}:./{file.name}"))
    return Version(name=short, run=run, commit=commit, date=date, subject=seen(subject), problem=problem)


def _log(file: Path, at: str = "HEAD") -> list[tuple[str, str, str, str]]:
    """The commits on the main line up to `at` that wrote a file, newest first: id, short id, day, first line.

    A merge counts as one commit. Empty if git does not know the file, or the commit.
    """
    shown = ("--no-show-signature", "--encoding=UTF-8", "--name-only", f"--format={_DIVIDER.join(_FIELDS)}")
    try:
        text = _git(file, "log", "--first-parent", "-m", "--diff-filter=d", *shown, at, "--", file.name)
    except ValueError:
        return []
    lines = [line.split(_DIVIDER, 3) for line in text.decode(errors="replace").split("\n") if _DIVIDER in line]
    return [(commit, short, date, subject) for commit, short, date, subject in lines]


def _is_shallow(file: Path) -> bool:
    """Whether the repository of a file lacks its early commits."""
    return _git(file, "rev-parse", "--is-shallow-repository").strip() == b"true"


def _git(file: Path, *arguments: str) -> bytes:
    """What git says in the folder of a file. Raises ValueError, in one line, if it fails."""
    command = ["git", "--no-pager", "--literal-pathspecs", "-C", str(file.parent), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, check=False)
    except OSError as error:
        raise ValueError(f"Expected git to follow {file} through its commits, got {error}") from None
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"Expected {file} in a git repository, got: {said[-1] if said else 'an error of git'}")
    return done.stdout
