"""The command that makes a process a worker of a run. Heavy imports happen inside."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from advbench.cli.options import Jobs, SlotsPerDevice, TimeLimit
from advbench.cli.terminal import refuse, say, watcher


def work(
    out: Annotated[
        Path, typer.Argument(metavar="OUT", help="The output folder of a run, on a disk that all its workers share.")
    ],
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda, ... \\[default: as the run says]")] = None,
    jobs: Jobs = None,
    slots_per_device: SlotsPerDevice = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="Directory containing the data sets. \\[default: as the run says]")
    ] = None,
    time_limit: TimeLimit = None,
    idle: Annotated[float, typer.Option(min=0, help="Seconds without a task after which the worker ends.")] = 600.0,
    lease: Annotated[
        float, typer.Option(min=1, help="Seconds of silence after which other workers take over this one's tasks.")
    ] = 60.0,
) -> None:
    """Take ready tasks of a run until nothing is left: start as many workers as you like, on as many machines.

    OUT is the folder of a run that `advbench run` has begun, with --engine pilots or any other. Workers need the same
    advbench, data and user files, and a model cache that all share ($ADVBENCH_CACHE). A worker that is lost costs the task
    that it worked on, which another one takes over.

    Exit codes: 0 nothing left, or nothing ready, to do; 1 at least one task failed; 2 bad input, another device or other
    data than the run's; 130 interrupted.
    """
    from rich.console import Console

    given: dict[str, object] = {"device": device, "jobs": jobs, "slots_per_device": slots_per_device}
    given |= {"data_dir": None if data_dir is None else data_dir.absolute(), "time_limit": time_limit}
    try:
        from advbench.engine import pilots

        with watcher(Console()) as watch:
            done = pilots.work(out, watch=watch, idle=idle, seconds=lease, say=say, **given)
    except Exception as error:
        refuse(error)
    for reason in list(dict.fromkeys(done.failures.values()))[:5]:
        print(f"failed: {reason}")
    left = "interrupted" if done.interrupted else "nothing is ready" if done.left else "nothing is left to do"
    print(f"{done.ran} tasks done here; {left}, {done.left} of the run's tasks not done")
    raise typer.Exit(130 if done.interrupted else 1 if done.failures else 0)
