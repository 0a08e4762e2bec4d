"""Pilots: workers that come to a run's folder by themselves, from this machine or others, and take what is ready.

``advbench work OUT`` is one. It makes the plan of the run again from ``OUT/plan.json`` and takes tasks by leases
(`advbench.engine.leases`). Nobody hands tasks out, so the process that began the run may go away: pilots go on until nothing
is left, and the next start of the run reports.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from advbench.config import Config
from advbench.devices import TRAITS, count
from advbench.engine.claims import EVERY, SharedClaims
from advbench.engine.engine import Engine
from advbench.engine.leases import SECONDS, Leases
from advbench.engine.local import engine_of
from advbench.engine.scheduler import Watcher, work_on
from advbench.plan.place import Place
from advbench.plan.plan import Plan, make_plan
from advbench.plan.saved import NAME, Saved, same_plan, use_cache
from advbench.tasks.execution import TaskOutcome
from advbench.tasks.task import Task

IDLE = 600.0
"""Seconds without a task after which a pilot ends."""
_PLANNING = "plan"
"""The lease of the pilot that plans a run which nobody has planned yet."""


class NoPilotsError(OSError):
    """All pilots of a run have ended, and something is left to do."""


@dataclass(frozen=True, slots=True)
class Work:
    """What a pilot did. ran: tasks. left: of those that were to be done, how many are not. failures: reasons by key."""

    ran: int
    left: int
    failures: dict[str, str]
    interrupted: bool


class Watching:
    """An engine without slots: others do the tasks. working: whether any of them is left, if that can be known."""

    slots = 0

    def __init__(self, working: Callable[[], bool] = lambda: True) -> None:
        self._working = working
        self._quiet = 0

    def submit(self, task: Task) -> None:
        """Raises RuntimeError: there is no slot."""
        raise RuntimeError(f"Expected no task, as there are no slots, got {task.label}")

    def wait(self, timeout: float | None = None) -> TaskOutcome | None:
        """Wait a moment. Raises NoPilotsError a few moments after the last pilot has ended."""
        time.sleep(EVERY if timeout is None else timeout)
        self._quiet = 0 if self._working() else self._quiet + 1
        if self._quiet > 5:
            raise NoPilotsError("Expected pilots at work, got none: all have ended, and what they finished is kept")
        return None

    def close(self, *, kill: bool = False) -> None:
        """Pilots go on by themselves."""


def coordinate(config: Config, start: Callable[[Path], Engine], say: Callable[[str], None]) -> tuple[Plan, Engine]:
    """Begin a run that pilots do, and wait until one of them has planned it, with the device and batches that it has.

    start: starts pilots for the folder of the run; what it returns watches them. say: called with lines for the user.
    ValueError, in one line, if the plan is another one here.
    """
    out, saved = config.out, Saved.of(config)
    config = config.model_copy(update={"fresh": False})
    with suppress(FileNotFoundError, ValueError):
        earlier = Saved.read(out)
        if earlier.place is not None and earlier.same_run(saved) and not saved.fresh:
            saved = saved.planned(make_plan(config, measure=False, place=earlier.place))
    SharedClaims(out).begin()
    saved.write(out)
    engine = start(out)
    if saved.place is None:
        say("waiting for the first worker, whose device decides the plan")
    while saved.place is None:
        engine.wait(EVERY)
        saved = Saved.read(out)
    plan = make_plan(config, measure=False, place=saved.place)
    saved.check(plan)
    return plan, engine


def preview(config: Config) -> Plan:
    """What a run by pilots would do, for the device that is known, or for one of which only the kind is; nothing runs."""
    place = None
    with suppress(FileNotFoundError, ValueError):
        earlier = Saved.read(config.out)
        place = earlier.place if earlier.same_run(Saved.of(config)) else None
    kind = config.device.partition(",")[0].partition(":")[0].strip()
    if place is None and kind in TRAITS and not count(kind):
        place = Place(kind, f"{kind} of another machine")
    return make_plan(config, measure=False, place=place)


def work(
    out: Path,
    *,
    watch: Watcher | None = None,
    idle: float = IDLE,
    seconds: float = SECONDS,
    say: Callable[[str], None] = print,
    **given: object,
) -> Work:
    """Be a pilot of the run in `out` until nothing is left, or nothing was ready for `idle` seconds.

    seconds: how long a lease may stay unchanged before others take it over. given: `device`, `data_dir`, `jobs` and
    `slots_per_device`, as in `advbench.config.Config`, where they differ from those of the run. say: called with lines for
    the user. Raises FileNotFoundError if there is no run, ValueError, in one line, if this machine cannot do its tasks.
    """
    out = out.absolute()
    shared = SharedClaims(out, helps=True, idle=idle, seconds=seconds)
    plan = _plan(out, given, shared.leases)
    tasks = plan.pending()
    say(f"{len(tasks)} of {len(plan.tasks)} tasks to do, on {plan.place.name if plan.place else 'this machine'}")
    run, interrupted = work_on(plan, tasks, watch, engine_of, shared)
    return Work(run.ran, len(tasks) - run.status.done, run.reasons, interrupted)


def _plan(out: Path, given: dict[str, object], leases: Leases) -> Plan:
    """The plan of a run, made by this pilot if nobody has made it yet."""
    saved = _read(out)
    use_cache(saved)
    if Path(saved.folder).is_dir():
        os.chdir(saved.folder)  # where relative paths of the user's files begin
    while saved.place is None:
        if leases.take(_PLANNING) is not None:
            with leases.kept_fresh():
                saved = _read(out)
                return _planned_here(saved, out, given) if saved.place is None else same_plan(saved, out, **given)
        leases.others()
        time.sleep(EVERY)
        saved = _read(out)
    return same_plan(saved, out, **given)


def _planned_here(saved: Saved, out: Path, given: dict[str, object]) -> Plan:
    plan = make_plan(saved.config(out, **given))
    if saved.fresh:
        plan.forget()
    saved.planned(plan).write(out)
    return plan


def _read(out: Path) -> Saved:
    try:
        return Saved.read(out)
    except FileNotFoundError:
        raise ValueError(f"Expected the folder of a run (advbench run --out {out}), got no {NAME} in it") from None
