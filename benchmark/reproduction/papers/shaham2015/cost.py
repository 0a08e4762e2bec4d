"""Shaham et al. 2015: what a robust training costs beside a plain one, which the paper expects to be twice as much."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from advbench.clocks import single_thread
from advbench.devices import synchronise
from advbench.reproduction.clean import kept_path
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.papers.shaham2015.nets import MNIST, NETS, RADII, differs
from advbench.reproduction.papers.shaham2015.sweep import sweep_runs
from advbench.reproduction.study import Comparison, Ours, Pair, Scale, Settings, Study, claim_of, within
from advbench.results.papers import load
from advbench.tasks.artefacts import read, save, whole
from advbench.tasks.components import defense_of
from advbench.tasks.models import network_of
from advbench.tasks.train import TrainContent
from advbench.zoo.data import DataSet
from advbench.zoo.training import seeded

_MARGIN = 0.25
"""Twice is within an eighth of twice."""
_IMAGES = 1_000
_ROUNDS = 3


def _cost_runs(scale: Scale) -> Mapping[str, Settings]:
    return sweep_runs(MNIST[scale], RADII, (1.0,))


def _cost(findings: Findings) -> Sequence[Comparison]:
    run = findings["own gradients"]
    found = [_measured(run, seed) for seed in findings.seeds]
    twice = (
        load("shaham2015").tables["shaham2015.text_numbers"].cell("value", "expected training time factor versus standard")
    )
    places = {net: place for place, net in enumerate(NETS)}
    ratios = {net: tuple(each["seconds"][i] / each["seconds"][0] for each in found) for net, i in places.items()}
    rows = tuple(
        (
            net,
            (
                Pair(None if net == "baseline" else twice, Ours(ratios[net])),
                *(Pair(None, Ours(tuple(each[passes][i] for each in found))) for passes in ("forwards", "backwards")),
            ),
        )
        for net, i in places.items()
    )
    claim = claim_of(
        "shaham2015.claim.time",
        (
            within(f"processor time of {net} / that of the baseline - {twice:g}", ratios[net], [twice] * len(found), _MARGIN)
            for net in NETS
            if net != "baseline"
        ),
    )
    columns = (("processor time", "baseline = 1"), ("forwards per step", ""), ("backwards per step", ""))
    return (Comparison("The cost of a robust training beside that of a plain one", columns, rows, (claim,)),)


def _measured(run: RunFindings, seed: int) -> Mapping[str, Sequence[float]]:
    """For each net, in the order of `NETS`: seconds of a short training, and passes per step; kept beside the results."""
    cells = [run.one(seed=seed, defense=defense) for defense in NETS.values()]
    path = kept_path(run, cells[0], "training-cost")
    if not whole(path):
        trainings = [_training(run, cell) for cell in cells]
        with single_thread():
            rounds = np.array([[one() for one in trainings] for _ in range(_ROUNDS)])  # in turns
            passes = [_passes(run, cell) for cell in cells]
        forwards, backwards = np.array(passes, dtype=np.float64).T
        save(path, seconds=rounds.min(axis=0), forwards=forwards, backwards=backwards)
    return {name: values.tolist() for name, values in read(path).items()}


def _training(run: RunFindings, cell: ScoredCell) -> Callable[[], float]:
    """A call that trains a cell's target for an epoch on 1,000 images, and says how many seconds that took.

    On a CPU they are the process's own, which other work beside it does not lengthen.
    """
    device = run.plan.devices[0]
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    content, data = _shortened(run, cell)

    def call() -> float:
        synchronise(device)
        before = clock()
        _fit(content, data, device)
        synchronise(device)
        return clock() - before

    return call


def _passes(run: RunFindings, cell: ScoredCell) -> tuple[float, float]:
    """Forward and backward passes of the whole network per step."""
    content, data = _shortened(run, cell)
    counted = Counter[str]()

    def forward(model: nn.Module, _: object, logits: Tensor) -> None:
        if model.training:
            counted["forwards"] += 1
            if logits.requires_grad:
                logits.register_hook(lambda _: counted.update(["backwards"]))  # type: ignore[no-untyped-call]

    steps = _fit(content, data, run.plan.devices[0], lambda model: model.register_forward_hook(forward))
    return counted["forwards"] / steps, counted["backwards"] / steps


def _shortened(run: RunFindings, cell: ScoredCell) -> tuple[TrainContent, DataSet]:
    """The training in short, and next to no validation images."""
    content, data = run.plan.trainings[cell.record.details["model_key"]], run.plan.data
    budget = dataclasses.replace(content.budget, epochs=1, train_examples=min(_IMAGES, len(data.train)))
    few = dataclasses.replace(data, validation=data.validation.first(1))
    return dataclasses.replace(content, budget=budget), few


def _fit(
    content: TrainContent, data: DataSet, device: torch.device, watch: Callable[[nn.Module], object] = lambda _: None
) -> int:
    """Train once; how many steps there were. watch: called with the network before the first."""
    make = network_of(content, data)
    done = [0]

    def architecture() -> nn.Module:
        made = make()
        watch(made)
        return made

    def note(step: int, _: int) -> None:
        done[0] = step

    with seeded(content.seed):
        defense_of(content.defense).fit(
            architecture, data, inputs={}, seed=content.seed, device=device, budget=content.budget, progress=note
        )
    return done[0]


def _differs_cost(scale: Scale) -> Sequence[str]:
    return (
        *differs(scale),
        f"processor time of an epoch on {_IMAGES:,} images, the least of {_ROUNDS} that the four nets took in turns: other "
        "work of the machine does not count",
        f"twice is read as within {_MARGIN:g} of 2; a backward of the ascent step leaves out the weights' gradients, one of "
        "plain training the images'",
    )


STUDIES = (Study("shaham2015.time", "the cost of a training", _cost_runs, _cost, _differs_cost),)
