"""Pilots as an array of Slurm jobs, by submitit: each runs ``advbench work``; one that is preempted is queued again."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from advbench.engine.pilots import Watching

if TYPE_CHECKING:
    import submitit

_COMMON = frozenset({"timeout_min", "mem_gb", "nodes", "cpus_per_task", "gpus_per_node", "tasks_per_node"})
"""Parameters that submitit knows on every cluster; the others are Slurm's own."""
_PATIENCE = 30
"""Seconds that a pilot has to give back its tasks when its job is ended."""


@dataclass(frozen=True, slots=True)
class Pilot:
    """The work of one job: a pilot in a process of its own, which is told when the job is ended."""

    command: tuple[str, ...]

    def __call__(self) -> int:
        """Run the pilot to its end; its exit code."""
        process = subprocess.Popen(self.command)
        try:
            return process.wait()
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)
                try:
                    process.wait(_PATIENCE)
                except subprocess.TimeoutExpired:
                    process.kill()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit queues if the job is preempted or out of time: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    out: Path, pilots: int, parameters: Mapping[str, str | int], arguments: Sequence[str], say: Callable[[str], None]
) -> Watching:
    """Submit an array of pilots for the run in `out`, and watch them.

    parameters: of the jobs, by Slurm's or submitit's names, such as ``partition`` or ``gpus_per_node``; ``cluster`` is that
    of submitit (``local`` starts processes here). arguments: of ``advbench work``. Logs go to ``out/slurm``. ValueError, in
    one line, if submitit or Slurm is not here, or knows no such parameter.
    """
    try:
        import submitit
    except ModuleNotFoundError:
        raise ValueError("Expected submitit for the engine slurm, got none: pip install 'advbench[slurm]'") from None
    given = dict(parameters)
    cluster = str(given.pop("cluster", "slurm"))
    if cluster == "slurm" and shutil.which("srun") is None:
        raise ValueError(f"Expected Slurm's commands here, got no srun: start workers by hand, advbench work {out}")
    executor = submitit.AutoExecutor(folder=out / "slurm", cluster=cluster)
    if cluster == "slurm":
        executor.update_parameters(slurm_additional_parameters={"requeue": True})
    named = {name if name in _COMMON else f"{cluster}_{name}": value for name, value in given.items()}
    try:
        executor.update_parameters(name="advbench", **named)
    except (NameError, TypeError, ValueError) as error:
        raise ValueError(f"Expected parameters of {cluster} jobs, got {given}: {str(error).strip():.200}") from None
    pilot = Pilot((sys.executable, "-m", "advbench", "work", str(out), *arguments))
    with executor.batch():
        jobs = [executor.submit(pilot) for _ in range(pilots)]
    numbers = ", ".join(str(job.job_id) for job in jobs)
    say(f"{pilots} workers submitted, jobs {numbers}; they go on without this process; their logs are in {out / 'slurm'}")
    return Watching(lambda: not all(job.done() for job in jobs))
