"""Progress inside a craft: from workers of any kind to whoever watches, on a terminal and in plain lines."""

import io
import json
import time

import pytest
import torch
from rich.console import Console

import advbench
from advbench.attacks import progress as attack_progress
from advbench.attacks.access import WhiteBox
from advbench.attacks.rng import ExampleRNG
from advbench.cli.terminal import plain_lines, watcher
from advbench.engine.scheduler import Status
from advbench.tasks import progress
from advbench.tasks.progress import CraftProgress, Reporter

pytestmark = pytest.mark.usefixtures("cache")


def standing(**changes):
    return CraftProgress(
        **{"label": "pgd on none", "part": "", "images": 10, "robust": 4, "share": 0.25, "seconds": 60.0} | changes
    )


def test_a_standing_says_part_robust_images_and_time_left():
    assert str(standing(part="Square")) == "Square, 4 of 10 images still robust, about 180 s left"
    assert str(standing(share=0.0)) == "4 of 10 images still robust"


def test_a_reporter_counts_over_blocks_and_keeps_quiet_in_between(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    said = []
    reporter = Reporter(said.append, "pgd on none", images=8, forwards=10.0, every=1.0)

    def access():
        return WhiteBox(torch.nn.Identity(), ExampleRNG.make(0, "attack", torch.arange(4)))

    def tell(rows, achieved, seconds):
        clock[0] += seconds
        attack_progress.tell(torch.tensor(rows), torch.tensor(achieved))

    one, other = access(), access()
    with reporter.block(one):
        tell([0, 1, 2, 3], [True, False, False, False], 0.5)
        one.ledger.forwards[:] = torch.tensor([1, 5, 5, 5])
        tell([1, 3], [False, True], 0.6)
        tell([1, 2], [False, True], 0.6)
    with reporter.block(other):
        tell([0, 1, 2, 3], [False, False, True, False], 3.3)
    attack_progress.tell(torch.tensor([0]), torch.tensor([True]))
    assert said == [
        CraftProgress("pgd on none", "", 8, 6, 0.25, 1.1),
        CraftProgress("pgd on none", "", 8, 4, 0.5, 5.0),
    ]


def test_files_come_back_and_damaged_ones_do_not_matter(tmp_path):
    progress.write(tmp_path, "a", standing())
    progress.write(tmp_path, "b", standing(part="FAB"))
    (tmp_path / "c.json").write_text("{")
    (tmp_path / "d.json").write_text(json.dumps({"label": 1}))
    assert progress.read(tmp_path) == {"a": standing(), "b": standing(part="FAB")}
    progress.forget(tmp_path, "a")
    progress.forget(tmp_path, "a")
    assert list(progress.read(tmp_path)) == ["b"]
    progress.write(tmp_path / "nowhere", "a", standing())


@pytest.mark.parametrize(("jobs", "backend"), [(1, "loky"), (2, "loky")])
def test_a_long_craft_is_heard_of_from_any_worker(settings, monkeypatch, jobs, backend):
    monkeypatch.setattr(progress, "EVERY", 0.01)
    long = {"matrix": "white-box", "defense": "none", "attack": "pgd(steps=1500, stop='never')"}
    seen = []

    def watch(status):
        seen.extend((key, one) for key, one in status.crafts.items())

    result = advbench.run(**settings | long | {"jobs": jobs, "backend": backend, "batch": 24}, watch=watch)
    assert result.exit_code == 0
    assert {one.label for _, one in seen} <= {
        "pgd(steps=1500, stop='never') on none",
        "pgd(steps=1500, stop='never') on weight-decay",
    }
    assert seen
    for _, one in seen:
        assert one.images == 24
        assert 0 <= one.robust <= 24
        assert 0 < one.share < 1
        assert one.seconds_left > 0
    assert min(one.robust for _, one in seen) < 24


def test_nobody_writes_where_nobody_watches(settings, monkeypatch):
    def refuse(*_):
        raise AssertionError("a craft reported")

    monkeypatch.setattr(progress, "EVERY", 0.0)
    monkeypatch.setattr(progress, "write", refuse)
    assert advbench.run(**settings | {"matrix": "white-box", "defense": "none", "attack": "pgd(steps=3)"}).exit_code == 0


def test_plain_lines_are_rare(capsys):
    watch = plain_lines()
    for second in range(0, 100, 5):
        watch(Status(total=4, crafts={"a": standing(seconds=float(second)), "b": standing(label="short", seconds=3.0)}))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[0] == "pgd on none: 4 of 10 images still robust, about 90 s left"


def test_a_run_that_is_quiet_says_every_half_minute_what_is_at_work(capsys):
    now = 0.0
    watch = plain_lines(clock=lambda: now)
    for second in range(0, 100, 5):
        now = float(second)
        watch(Status(total=4, done=0, running=["train pgd-linf", "train none", "train trades"]))
    lines = capsys.readouterr().out.splitlines()
    assert lines == ["0 of 4 tasks done; at work: train pgd-linf; train none"] * 3


def test_a_terminal_has_a_row_for_every_running_craft():
    console = Console(file=io.StringIO(), force_terminal=True, width=160, color_system=None)
    with watcher(console, 4) as watch:
        watch(Status(total=4, done=1, crafts={"a": standing(part="[b]Square"), "b": standing(label="fab on x")}))
        time.sleep(0.3)
        watch(Status(total=4, done=2, crafts={"b": standing(label="fab on x", robust=3)}))
        time.sleep(0.3)
    text = console.file.getvalue()
    assert "pgd on none: [b]Square, 4 of 10 images still robust" in text
    assert "fab on x: 3 of 10 images still robust" in text
