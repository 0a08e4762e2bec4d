"""Whether a worker computes what was planned: its kind of device, its data, and the networks of the user as it builds them.

A worker may be on another machine, or start long after the plan. What it computes otherwise must not get a key of the plan.
"""

from __future__ import annotations

import torch

from advbench.clocks import device_name
from advbench.registry.schemes import OWN
from advbench.registry.specs import Spec
from advbench.tasks.answers import alike, answers
from advbench.tasks.calibrate import DataCalibration
from advbench.tasks.components import Component, architecture_of
from advbench.tasks.context import Context, data_of
from advbench.tasks.models import answers_of, build_defended
from advbench.tasks.substitute import SubstituteContent
from advbench.tasks.task import Task
from advbench.tasks.train import TrainContent
from advbench.zoo import training


class RefusedError(ValueError):
    """A worker that does not take a task, as it would compute something else; the message says what differs, in one line."""


def check(task: Task, context: Context, device: torch.device) -> None:
    """Raise RefusedError if this worker's device, data or networks are not those that the task was planned with."""
    content = task.content
    if isinstance(content, TrainContent | SubstituteContent | DataCalibration):
        fingerprint = content.fingerprint
    else:
        fingerprint = content.images.fingerprint
        _check_device(content.images.device, device)
    data = data_of(context)
    if data.fingerprint != fingerprint:
        raise RefusedError(
            f"Expected the images of {context.dataset} that the run was planned with (fingerprint {fingerprint[:8]}), got "
            f"others under that name ({data.fingerprint[:8]}): do not change files of a run, and give all workers the same"
        )
    if isinstance(content, TrainContent) and content.answers:
        defended = build_defended(content, context.trainings, data)
        _check_answers(content.answers, answers_of(content, defended, data, slopes=False))
    elif isinstance(content, SubstituteContent) and content.architecture.name.startswith(OWN):
        _check_substitute(content.architecture, context)


def _check_device(planned: str, device: torch.device) -> None:
    found = device_name(device)
    if found != planned:
        raise RefusedError(
            f"Expected a worker on {planned}, for which the run was planned, got one on {found}: plan a run of its own there"
        )


def _check_substitute(planned: Component, context: Context) -> None:
    """Compare the answers in the identity of a substitute's network with those of the one that is found here."""
    data = data_of(context)
    here = Component.of("architectures", Spec(planned.name, planned.arguments)).identity
    with training.seeded(0):
        network = architecture_of(planned, data)
    _check_answers(planned.identity.removeprefix(f"{here} "), answers(network, data, slopes=False))


def _check_answers(planned: str, found: str) -> None:
    if not alike(planned, found):
        raise RefusedError(
            "Expected the model that the run was planned for, got one that answers otherwise: do not change its code, what "
            "that reads or the environment meanwhile, and give all workers the same"
        )
