"""The command history on a baseline in git, and on runs."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import advbench
from advbench.records import versions
from tests.benchmark.test_gating import write_run

ALONE = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_SYSTEM": os.devnull}


def git(folder, *arguments, day=1):
    date = f"2026-03-{day:02}T12:00:00Z"
    named = {f"GIT_{who}_{what}": text for who in ("AUTHOR", "COMMITTER") for what, text in (("NAME", "a"), ("EMAIL", "b"))}
    environment = os.environ | ALONE | named | {"GIT_AUTHOR_DATE": date, "GIT_COMMITTER_DATE": date}
    command = ["git", "-C", str(folder), *map(str, arguments)]
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout.strip()


def commit(folder, accuracy, subject, *, day):
    """Commit the baseline of a run of new weights."""
    runs = folder.parent / "runs"
    write_run(runs / subject, {"net": accuracy}, weights=subject)
    advbench.write_baseline(runs / subject, folder / "gate" / "robustness.json")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", subject, day=day)


def cli(*arguments, cwd, **environment):
    kept = {name: value for name, value in os.environ.items() if name != "GITHUB_STEP_SUMMARY"}
    command = [sys.executable, "-m", "advbench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=kept | environment, timeout=120)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A repository whose baseline loses 0.75 points in each of four versions, one of which came by a merge."""
    place = tmp_path_factory.mktemp("place")
    folder = place / "repo"
    (folder / "gate").mkdir(parents=True)
    git(place, "init", "-q", "-b", "main", folder)
    commit(folder, 0.6, "first", day=1)
    (folder / "other").write_text("no baseline", encoding="utf-8")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "something else", day=2)
    commit(folder, 0.5925, "second", day=3)
    git(folder, "checkout", "-qb", "side")
    commit(folder, 0.1, "tried and dropped", day=4)
    commit(folder, 0.585, "third <b>", day=5)
    git(folder, "checkout", "-q", "main")
    git(folder, "commit", "-q", "--allow-empty", "-m", "meanwhile", day=6)
    git(folder, "merge", "-q", "--no-ff", "-m", "Merge the third", "side", day=7)
    commit(folder, 0.57, "fourth", day=8)
    write_run(place / "out", {"net": 0.57}, weights="fourth")
    return place


TERMS = ("--tolerance", "0.02", "--checkpoints-only")


def test_the_commits_of_the_main_line_are_the_versions_and_drift_is_an_exit_code(place):
    found = cli("history", "gate/robustness.json", *TERMS, cwd=place / "repo")
    assert (found.returncode, found.stderr) == (1, "")
    rows = [re.split(r"\s{2,}", line) for line in found.stdout.splitlines()[2:6]]
    assert [row[1:] for row in rows] == [
        ["2026-03-01", "first", "–", "the anchor"],
        ["2026-03-03", "second", "passed", "passed"],
        ["2026-03-07", "Merge the third", "passed", "passed"],
        ["2026-03-08", "fourth", "passed", "failed"],
    ]
    assert rows[0][0] == git(place / "repo", "log", "-1", "--format=%h", ":/first")
    assert "passed against the version before, failed against the anchor" in found.stdout.splitlines()[-1]


def test_an_anchor_that_moves_accepts_what_was_lost_before(place):
    moved = cli("history", "robustness.json", *TERMS, "--anchor", "HEAD~1", cwd=place / "repo" / "gate")
    assert moved.returncode == 0
    assert [line.split()[-1] for line in moved.stdout.splitlines()[2:6]] == ["anchor", "anchor", "anchor", "passed"]
    found = versions.history(place / "repo/gate/robustness.json", checkpoints_only=True, anchor="main~2")
    assert found.anchor.subject == "second", "what the file was at a commit that did not touch it"
    assert found.anchor is found.steps[1].version
    dropped = versions.history(place / "repo/gate/robustness.json", checkpoints_only=True, anchor="side~1")
    assert dropped.anchor.subject == "tried and dropped"
    assert all(step.drift is not None for step in dropped.steps), "an anchor off the main line judges every version"


def test_a_run_may_follow_the_file_and_the_last_versions_alone_be_shown(place):
    found = advbench.history(place / "repo/gate/robustness.json", place / "out", checkpoints_only=True, last=2)
    assert [step.version.name for step in found.steps][1] == str(place / "out")
    assert found.steps[1].change.rows[0].question == "same weights"
    assert found.anchor.subject == "first"
    assert [verdicts.exit_code for verdicts in (found.steps[1].change, found.steps[1].drift)] == [0, 1]


def test_what_is_not_committed_is_the_last_version(place, tmp_path):
    git(tmp_path, "clone", "-q", place / "repo", "clone")
    file = tmp_path / "clone/gate/robustness.json"
    assert versions.UNCOMMITTED not in [step.version.name for step in versions.history(file, checkpoints_only=True).steps]
    write_run(tmp_path / "run", {"net": 0.3}, weights="new")
    advbench.write_baseline(tmp_path / "run", file)
    last = versions.history(file, checkpoints_only=True).steps[-1]
    assert last.version.name == versions.UNCOMMITTED
    assert last.change.failures[0].candidate == pytest.approx(0.3)


def test_a_version_that_cannot_be_read_and_a_deleted_one_do_not_end_the_history(place, tmp_path):
    git(tmp_path, "clone", "-q", place / "repo", "clone")
    folder, file = tmp_path / "clone", tmp_path / "clone/gate/robustness.json"
    kept = file.read_text(encoding="utf-8")
    for day, text in ((10, kept[:99]), (11, None), (12, kept)):
        file.unlink() if text is None else file.write_text(text, encoding="utf-8")
        git(folder, "add", ".")
        git(folder, "commit", "-qm", f"day {day}", day=day)
    found = versions.history(file, checkpoints_only=True)
    assert [step.version.subject for step in found.steps[-3:]] == ["fourth", "day 10", "day 12"]
    assert found.steps[-2].version.problem.startswith("Expected a baseline as JSON, got a cut off or damaged file")
    assert found.steps[-1].change.exit_code == 0


def test_a_shallow_clone_would_move_the_anchor_and_is_refused(place, tmp_path):
    git(tmp_path, "clone", "-q", "--depth", "1", f"file://{place / 'repo'}", "clone")
    found = cli("history", "gate/robustness.json", cwd=tmp_path / "clone")
    assert found.returncode == 2
    assert "fetch-depth: 0" in found.stderr
    assert len(found.stderr.splitlines()) == 1
    assert advbench.history(tmp_path / "clone/gate/robustness.json", anchor=str(place / "out")).exit_code == 0


def test_the_json_has_every_number_attack_and_verdict(place):
    found = cli("history", "gate/robustness.json", *TERMS, "--format", "json", cwd=place / "repo")
    content = json.loads(found.stdout)
    assert (content["format"], content["schema_version"], content["exit_code"]) == ("advbench history", 1, 1)
    assert content["anchor"]["subject"] == "first"
    values = [{each["quantity"]: each["value"] for each in step["numbers"]} for step in content["steps"]]
    assert [value["robust accuracy"] for value in values] == [0.6, 0.5925, 0.585, 0.57]
    assert {value["clean accuracy"] for value in values} == {1.0}
    (attack,) = content["steps"][-1]["attacks"]
    assert attack["attacker"] == {"matrix": "white-box", "attack": "pgd", "source": ""}
    assert attack["accuracy"] == 0.57
    (row,) = [row for row in content["steps"][-1]["against_anchor"]["rows"] if row["fails"]]
    assert row["difference"] == pytest.approx(-0.03)
    assert content["steps"][0]["against_before"] is None
    assert content["terms"]["tolerance"] == 0.02


def test_the_page_shows_names_as_text_and_the_summary_of_a_job_is_markdown(place, tmp_path):
    summary = tmp_path / "summary.md"
    terms = ("--checkpoints-only", "--to", tmp_path / "site")
    found = cli("history", "gate/robustness.json", *terms, cwd=place / "repo", GITHUB_STEP_SUMMARY=str(summary))
    assert found.stdout.splitlines()[-2:] == [str(tmp_path / "site" / name) for name in ("history.html", "history.json")]
    page = (tmp_path / "site/history.html").read_text(encoding="utf-8")
    assert "Merge the third" in page
    assert page.count("linf ≤ 0.125 on digits") > 1
    assert json.loads((tmp_path / "site/history.json").read_text(encoding="utf-8"))["exit_code"] == found.returncode
    assert summary.read_text(encoding="utf-8").startswith("## Robustness by version: failed")


def test_a_site_links_the_history_and_loses_it_again(place, tmp_path):
    cli("publish", place / "out", "--to", tmp_path, "--history", place / "repo/gate/robustness.json", cwd=tmp_path)
    assert 'href="history.html"' in (tmp_path / "index.html").read_text(encoding="utf-8")
    assert 'href="data/history.json"' in (tmp_path / "history.html").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "data/history.json").read_text(encoding="utf-8"))["terms"]["across_versions"] is True
    cli("publish", place / "out", "--to", tmp_path, cwd=tmp_path)
    assert not (tmp_path / "history.html").exists()
    assert "history" not in (tmp_path / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["out"], "several runs, got one folder at out"),
        (["out/run.json"], "got no committed file at out/run.json"),
        (["absent.json"], "got no committed file at absent.json"),
        (["out", "absent"], "Expected a baseline at absent, got no such file"),
        (["out", "out", "--anchor", "--output=x"], "Expected `anchor` to be one of the runs"),
        (["out", "out", "--last", "0"], "Expected `last` >= 1, got 0"),
        (["out", "out", "--tolerance", "2"], "Expected `tolerance` in [0, 1)"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(place, arguments, message):
    found = cli("history", *arguments, cwd=place)
    assert (found.returncode, found.stdout) == (2, "")
    assert message in found.stderr
    assert len(found.stderr.splitlines()) == 1


def test_an_anchor_that_is_an_option_of_git_is_none(place):
    with pytest.raises(ValueError, match="Expected `anchor` to be a commit that has the file"):
        advbench.history(place / "repo/gate/robustness.json", anchor=f"--output={place / 'written'}")
    assert not (place / "written").exists()


def test_several_files_are_taken_as_they_stand(place, tmp_path):
    for name in ("first", "fourth"):
        advbench.write_baseline(place / "runs" / name, tmp_path / f"{name}.json")
    found = advbench.history(tmp_path / "first.json", tmp_path / "fourth.json", checkpoints_only=True)
    assert [Path(step.version.name).name for step in found.steps] == ["first.json", "fourth.json"]
    assert found.exit_code == 1
