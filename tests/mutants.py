"""Weakened attacks and falsified numbers, one at a time: which of them do the tests notice?

    python tests/mutants.py                        all hand-made ones
    python tests/mutants.py fab scoring            those whose names begin so
    python tests/mutants.py --sampled 40 --seed 0  so many random changes of the arithmetic
    python tests/mutants.py --list                 names alone

Each is a change of text in a copy of the package, on which its tests run until one fails: killed, or survived. The tests
must pass without a change, or nothing is said. Ends with 1 where one survived. A command, as it takes minutes.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import itertools
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import pytest
import torch

for heavy in ("scipy.optimize", "scipy.signal", "scipy.stats", "sklearn.datasets"):
    importlib.import_module(heavy)

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("attacks", "defenses", "reports", "results", "zoo")
LIMIT = 900
"""Seconds after which a mutant counts as killed: it no longer ends."""

A = "tests/attacks/test_"
B = "tests/benchmark/test_"
DEFAULTS = f"{A}defaults.py"
TRANSFER = f"{A}transfer_strength.py"
SCORING = (f"{B}evaluation.py", f"{A}certified_images.py -k leaves or far")


@dataclass(frozen=True)
class Mutant:
    """A change of the one place in `file` that reads `old`; tests: arguments of pytest, one run for each."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


def default(name: str, file: str, old: str, new: str) -> Mutant:
    return Mutant(name, file, old, new, (DEFAULTS,))


def exact(which: str) -> str:
    return f"{A}exact_minima.py -k {which}"


MUTANTS = (
    default("fab: beta 0.99", "attacks/fab.py", "beta: float = 0.9\n", "beta: float = 0.99\n"),
    default("fab: alpha_max 0", "attacks/fab.py", "alpha_max: float = 0.1\n", "alpha_max: float = 0.0\n"),
    default("fab: eta 1.5", "attacks/fab.py", "eta: float = 1.05\n", "eta: float = 1.5\n"),
    Mutant(
        "fab: no step back",
        "attacks/fab.py",
        "self.beta * (z - search.x)",
        "1.0 * (z - search.x)",
        (f"{A}fab.py -k sets_out",),
    ),
    Mutant(
        "fab: no overshoot", "attacks/fab.py", "points + self.eta * ways", "points + 0.9 * ways", (f"{A}fab.py -k sets_out",)
    ),
    Mutant(
        "fab: never drawn to the image",
        "attacks/fab.py",
        ".clamp(max=self.alpha_max)",
        ".clamp(max=0.0)",
        (f"{A}fab.py -k sets_out",),
    ),
    default("mi-fgsm: decay 0", "attacks/momentum.py", "decay: float = 1.0\n", "decay: float = 0.0\n"),
    Mutant(
        "mi-fgsm: without momentum",
        "attacks/momentum.py",
        "self.decay * momentum + of_unit_sum(gradient)",
        "of_unit_sum(gradient)",
        (TRANSFER,),
    ),
    Mutant(
        "mi-fgsm: gradients not normalised",
        "attacks/momentum.py",
        "+ of_unit_sum(gradient)",
        "+ gradient",
        (f"{A}momentum.py",),
    ),
    Mutant(
        "ti-fgsm: without its kernel",
        "attacks/translation.py",
        "smoothed(evaluation.gradient, self.kernel_size)",
        "evaluation.gradient",
        (TRANSFER,),
    ),
    default("ti-fgsm: kernel of 1", "attacks/translation.py", "kernel_size: int = 15", "kernel_size: int = 1"),
    Mutant(
        "di-fgsm: without its transform",
        "attacks/diverse.py",
        "shown = resized(x_adv, numbers, self.probability, self.smallest)",
        "shown = 1 * x_adv",
        (TRANSFER,),
    ),
    default("di-fgsm: probability 0", "attacks/diverse.py", "probability: float = 0.5", "probability: float = 0.0"),
    Mutant(
        "di-fgsm: one transform for all steps", "attacks/diverse.py", ".at(step).uniform", ".uniform", (f"{A}diverse.py",)
    ),
    Mutant(
        "r-fgsm: without its random step",
        "attacks/rfgsm.py",
        "balls.project(x + self.alpha * threat.epsilon_or_inf * signs, x, threat)",
        "x.clone()",
        (f"{A}rfgsm.py",),
    ),
    Mutant(
        "r-fgsm: gradient of the clean image",
        "attacks/rfgsm.py",
        "access.loss_gradient(aside,",
        "access.loss_gradient(x,",
        (f"{A}rfgsm.py",),
    ),
    default("r-fgsm: alpha 0", "attacks/rfgsm.py", "alpha: float = 0.5", "alpha: float = 0.0"),
    Mutant(
        "pgd: clipped to the box alone",
        "attacks/pgd.py",
        "x_adv = balls.project(x_adv + self._step(gradient, x_adv, threat), search.x, threat)",
        "x_adv = (x_adv + self._step(gradient, x_adv, threat)).clamp(0, 1)",
        (f"{A}certified_images.py -k pgd-l2 and not selective",),
    ),
    Mutant(
        "pgd: half the step",
        "attacks/pgd.py",
        "length = self.step_size * threat.epsilon_or_inf",
        "length = 0.5 * self.step_size * threat.epsilon_or_inf",
        (f"{A}linear_oracles.py -k pgd_step",),
    ),
    default("pgd: no random start", "attacks/pgd.py", "random_start: bool = True", "random_start: bool = False"),
    default("pgd: half the steps", "attacks/pgd.py", "steps: int = 40", "steps: int = 20"),
    Mutant(
        "pgd: every restart the same",
        "attacks/pgd.py",
        "search.rng.at(restart)",
        "search.rng.at(0)",
        (f"{A}linear_oracles.py -k pgd_restarts",),
    ),
    Mutant(
        "best iterate: the last one",
        "attacks/iterates.py",
        "wins = gained | ((achieved == held) & (loss > least))",
        "wins = gained | (achieved == held)",
        (f"{A}iterates.py -k never",),
    ),
    Mutant(
        "best iterate: the loss alone",
        "attacks/iterates.py",
        "wins = gained | ((achieved == held) & (loss > least))",
        "wins = loss > least",
        (f"{A}iterates.py -k never",),
    ),
    Mutant(
        "random models: the luckiest iterate",
        "attacks/iterates.py",
        "if search.contenders is not None and search:",
        "if False and search.contenders is not None:",
        (f"{A}iterates.py -k strongest",),
    ),
    Mutant(
        "apgd: the step size never halves",
        "attacks/apgd.py",
        "(climb.step / 2).where(halve, climb.step)",
        "climb.step",
        (f"{A}apgd.py -k paper",),
    ),
    Mutant(
        "apgd: without momentum",
        "attacks/apgd.py",
        "settings, first=step == 1), climb)",
        "settings, first=True), climb)",
        (f"{A}apgd.py -k paper",),
    ),
    Mutant(
        "apgd: not back to the best iterate",
        "attacks/apgd.py",
        "x_adv=climb.best.where(back, climb.x_adv)",
        "x_adv=climb.x_adv",
        (f"{A}apgd.py -k paper",),
    ),
    Mutant(
        "apgd: no condition on rises",
        "attacks/apgd.py",
        "(climb.rises <= enough) | stuck",
        "stuck",
        (f"{A}apgd.py -k paper",),
    ),
    Mutant(
        "apgd: no condition on stagnation",
        "attacks/apgd.py",
        "(climb.rises <= enough) | stuck",
        "climb.rises <= enough",
        (f"{A}apgd.py -k since_the_last",),
    ),
    default("apgd-t: three targets", "attacks/apgd.py", "targets: int = 9", "targets: int = 3"),
    Mutant(
        "apgd in l1: dense steps",
        "attacks/apgd_l1.py",
        "(climb.share * size.shape[1]).ceil()",
        "(1.0 * size.shape[1] + 0 * climb.share).ceil()",
        (f"{A}apgd.py -k sparse",),
    ),
    Mutant(
        "targets: always the likeliest class",
        "attacks/aims.py",
        ".indices.unbind(dim=1)",
        ".indices[:, :1].expand(-1, min(count, logits.shape[1] - 1)).unbind(dim=1)",
        (f"{A}apgd.py -k target",),
    ),
    Mutant(
        "square: squares shrink twice as fast",
        "attacks/square.py",
        "self.p_init * 0.5 **",
        "self.p_init * 0.25 **",
        (f"{A}square.py -k shrink",),
    ),
    default("square: half of p", "attacks/square.py", "p_init: float = 0.8", "p_init: float = 0.4"),
    Mutant(
        "square: no stripes at the start",
        "attacks/square.py",
        "signs = 1 - 2 * rng.integers(2, (channels, 1, width))",
        "signs = 0 * rng.integers(2, (channels, 1, width))",
        (f"{A}square.py -k stripes",),
    ),
    Mutant(
        "square: the same squares in every query",
        "attacks/square.py",
        "return rng.select(rows).at(draws)",
        "return rng.select(rows).at(0 * draws)",
        (f"{A}square.py -k queries_change or best_corner",),
    ),
    Mutant(
        "ddn: gamma 0",
        "attacks/ddn.py",
        "norm = norm * torch.where(achieved, 1 - self.gamma, 1 + self.gamma)",
        "norm = 1 * norm",
        (f"{A}minimal_norm_oracles.py -k exact_distance and DDN",),
    ),
    Mutant(
        "ddn: the step size stays",
        "attacks/ddn.py",
        "* cosine(step, self.steps)",
        "* 1.0",
        (f"{A}published_forms.py -k plain_loop",),
    ),
    Mutant(
        "fmn: gamma 0",
        "attacks/fmn.py",
        "radius * (1 - gamma), radius * (1 + gamma)",
        "1.0 * radius, 1.0 * radius",
        (f"{A}published_forms.py -k fmn_is_the_plain_loop",),
    ),
    Mutant(
        "fmn: no annealing",
        "attacks/fmn.py",
        "annealing = cosine(step, self.steps)",
        "annealing = 1.0",
        (f"{A}published_forms.py -k fmn_is_the_plain_loop",),
    ),
    Mutant(
        "minimal norm: the farthest adversarial is kept",
        "attacks/nearest.py",
        "torch.where(achieved, -distance,",
        "torch.where(achieved, distance,",
        (exact("ddn and linear"),),
    ),
    Mutant(
        "carlini-wagner: without the search over c",
        "attacks/carlini_wagner.py",
        "constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)",
        "constant = 1 * constant",
        (exact("carlini and linear"), exact("carlini and not linear")),
    ),
    Mutant(
        "carlini-wagner: only upwards, no bisection",
        "attacks/carlini_wagner.py",
        "constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)",
        "constant = torch.where(high.isinf(), 10 * constant, constant)",
        (exact("carlini and linear"), exact("carlini and not linear")),
    ),
    Mutant(
        "carlini-wagner: no hinge",
        "attacks/carlini_wagner.py",
        "pull = run.constant.where(lead < self.confidence, 0)",
        "pull = 1 * run.constant",
        (exact("carlini and linear"), exact("carlini and not linear")),
    ),
    Mutant(
        "carlini-wagner: the last run ends before c rises",
        "attacks/carlini_wagner.py",
        "run.keep((weak | early |",
        "run.keep((",
        (exact("carlini and last"),),
    ),
    default(
        "carlini-wagner: three constants", "attacks/carlini_wagner.py", "search_steps: int = 9", "search_steps: int = 3"
    ),
    Mutant(
        "lbfgs: no line search",
        "attacks/quasi_newton.py",
        "taken = ahead <= value + _SUFFICIENT * slope",
        "taken = ~ahead.isnan()",
        (exact("lbfgs"), f"{A}peers_minimal_norm.py -k lbfgs"),
    ),
    Mutant(
        "lbfgs: a sign of the second loop",
        "attacks/quasi_newton.py",
        "(share - rho * (turn * direction)",
        "(share + rho * (turn * direction)",
        (f"{A}quasi_newton.py",),
    ),
    Mutant(
        "lbfgs: the best step is not kept",
        "attacks/lbfgs.py",
        "best.update(x_adv, achieved, -value, rows)",
        "best.update(x_adv, achieved, value, rows)",
        (exact("lbfgs"),),
    ),
    Mutant(
        "hop-skip-jump: a fixed step",
        "attacks/hop_skip_jump.py",
        "normal, distance / math.sqrt(iteration), rows",
        "normal, 0 * distance + 0.01, rows",
        (exact("hop and shallow"), f"{A}hop_skip_jump.py"),
    ),
    Mutant(
        "hop-skip-jump: the mean is not taken off",
        "attacks/hop_skip_jump.py",
        "ahead - balls.per_example(baseline, x_adv) * drift",
        "ahead",
        (exact("hop and shallow"), f"{A}hop_skip_jump.py"),
    ),
    Mutant(
        "hop-skip-jump: one probe for each normal",
        "attacks/hop_skip_jump.py",
        "return round(self.evaluations * math.sqrt(iteration))",
        "return 1",
        (exact("hop and shallow"), f"{A}hop_skip_jump.py"),
    ),
    Mutant(
        "deepfool: the farthest class",
        "attacks/deepfool.py",
        "torch.inf).min(dim=0)",
        "torch.inf).nan_to_num(posinf=0).max(dim=0)",
        (f"{A}linear_oracles.py -k straight",),
    ),
    default("deepfool: one candidate", "attacks/deepfool.py", "candidates: int = 10", "candidates: int = 1"),
    Mutant(
        "eot: one draw in place of K",
        "attacks/access.py",
        "self.draws = draws if self.stochastic else 1",
        "self.draws = 1",
        (f"{A}access.py -k eot",),
    ),
    Mutant(
        "eot: the sum in place of the mean",
        "attacks/access.py",
        "values.reshape(draws, -1, *values.shape[1:]).mean(dim=0)",
        "values.reshape(draws, -1, *values.shape[1:]).sum(dim=0)",
        (f"{A}access.py -k eot",),
    ),
    Mutant(
        "loss: the margin forgets the mask",
        "attacks/losses.py",
        "logits.scatter(1, column, -torch.inf).amax(dim=1)",
        "logits.scatter(1, column, 0.0).amax(dim=1)",
        (f"{A}threat_and_losses.py",),
    ),
    Mutant(
        "loss: the ratio with the second logit",
        "attacks/losses.py",
        "top[:, 2:].mean(dim=1)",
        "top[:, 1:].mean(dim=1)",
        (f"{A}threat_and_losses.py",),
    ),
    Mutant(
        "ball: l1 by rescaling",
        "attacks/balls.py",
        '{"l2": stretch, "l1": _project_l1, "l0": _project_l0}',
        '{"l2": stretch, "l1": stretch, "l0": _project_l0}',
        (f"{A}balls.py -k sparse_where",),
    ),
    Mutant(
        "ball: random starts near the centre",
        "attacks/balls.py",
        "uniform((), x.dtype) ** (1 / max(1, d))",
        "uniform((), x.dtype)",
        (f"{A}balls.py -k uniform_in_the_ball",),
    ),
    Mutant(
        "ball: starts on the surface of half of it",
        "attacks/balls.py",
        "per_example(epsilon / distance(delta, threat.norm), x) * delta",
        "per_example(epsilon / distance(delta, threat.norm), x) * delta / 2",
        (f"{A}balls.py -k on_the_surface",),
    ),
    Mutant(
        "ball: random starts in half of it",
        "attacks/balls.py",
        "            delta = 2 * rng.uniform(shape, x.dtype) - 1\n",
        "            delta = rng.uniform(shape, x.dtype) - 0.5\n",
        (f"{A}balls.py -k uniform_in_the_ball",),
    ),
    Mutant(
        "distance: on the wrong axis",
        "attacks/balls.py",
        "torch.linalg.vector_norm(delta.flatten(1), ord=_ORDERS[norm], dim=1)",
        "torch.linalg.vector_norm(delta, ord=_ORDERS[norm], dim=-1).flatten(1).amax(dim=1)",
        (f"{A}balls.py -k numpy",),
    ),
    Mutant(
        "distance: signed in linf",
        "attacks/balls.py",
        "delta.flatten(1).abs().amax(dim=1)",
        "delta.flatten(1).amax(dim=1)",
        (f"{A}balls.py -k numpy",),
    ),
    Mutant(
        "verification: a tolerance of a tenth",
        "attacks/balls.py",
        "tolerance: float = 1e-5",
        "tolerance: float = 1e-1",
        SCORING,
    ),
    Mutant(
        "verification: no box",
        "attacks/balls.py",
        "slack = tolerance * (high - low)",
        "slack = 1e9",
        (f"{A}balls.py -k violations", *SCORING),
    ),
    Mutant(
        "verification: no ball",
        "attacks/balls.py",
        "(distance(values - size, threat.norm) <= limit)",
        "(distance(values - size, threat.norm) <= torch.inf * limit)",
        SCORING,
    ),
    Mutant(
        "scoring: misclassified clean images count as robust",
        "results/statistics.py",
        "return np.where(clean_correct(examples), reported / examples.draws, 0.0)",
        "return np.where(clean_correct(examples), reported / examples.draws, 1.0)",
        ("tests/results/test_statistics.py -k clean_errors",),
    ),
    Mutant(
        "scoring: a minimal-norm adversarial at any distance",
        "results/statistics.py",
        "return distance(record, examples) <= epsilon * (1 + TOLERANCE)",
        "return distance(record, examples) < np.inf",
        ("tests/results/test_statistics.py -k within_epsilon",),
    ),
    Mutant(
        "scoring: the weakest surrogate counts",
        "benchmark/tasks/evaluation.py",
        "preference.argmin(dim=0), torch.arange",
        "preference.argmax(dim=0), torch.arange",
        SCORING,
    ),
    Mutant(
        "scoring: reported draws are those that chose",
        "benchmark/tasks/evaluation.py",
        "ExampleRNG.make(seed, purpose, part.index)",
        'ExampleRNG.make(seed, "select", part.index)',
        SCORING,
    ),
    Mutant(
        "scoring: rejected adversarials count as errors",
        "benchmark/tasks/evaluation.py",
        "return self.select + self.select_rejected, self.report + self.report_rejected",
        "return self.select, self.report",
        SCORING,
    ),
    Mutant(
        "scoring: rms by the wrong number of values",
        "benchmark/tasks/evaluation.py",
        "delta[0].numel() ** 0.5",
        "delta[0, 0].numel() ** 0.25",
        SCORING,
    ),
    Mutant(
        "transfer: crafts stop at success",
        "attacks/transfer.py",
        'with_stop(attack, "never")',
        'with_stop(attack, "success")',
        (f"{A}transfer.py -k told",),
    ),
    Mutant(
        "autoattack: without FAB",
        "attacks/autoattack.py",
        "            FABT(steps=self.steps, stop=self.stop),\n",
        "",
        (DEFAULTS,),
    ),
    Mutant("autoattack: squares rescaled", "attacks/autoattack.py", "rescale=False", "rescale=True", (DEFAULTS,)),
    Mutant(
        "worst case: what comes back is not looked at",
        "attacks/ensemble.py",
        "        look(search, balls.project(x_adv, search.x, threat), margin)\n",
        "        look(search, search.x, margin)\n",
        (f"{A}ensembles.py -k withstood",),
    ),
    Mutant(
        "auto: no squares",
        "attacks/auto.py",
        "        self._squares(standings, _ascent(steps))\n",
        "",
        (f"{A}auto.py -k masked",),
    ),
    Mutant(
        "auto: no long runs",
        "attacks/auto.py",
        "        self._long_runs(standings, targets)\n",
        "",
        (f"{A}auto.py -k without_a_stop", f"{A}auto.py"),
    ),
    Mutant(
        "uniform noise: the same point every time",
        "attacks/noise.py",
        "search.rng.at(point)",
        "search.rng.at(0)",
        (f"{A}pgd_and_noise.py -k worst_of",),
    ),
    Mutant(
        "correlated noise: no correlation",
        "attacks/correlated_noise.py",
        "noise: Tensor = mixed @ factor.T",
        "noise: Tensor = 1 * mixed",
        (f"{A}correlated_noise.py -k covariance_of",),
    ),
    Mutant(
        "selective-pgd: the step size stays",
        "attacks/selective_pgd.py",
        "step * _SHORTEST ** (number / self.steps) * ahead",
        "step * ahead",
        (f"{A}selective_pgd.py -k thin or short",),
    ),
)

SAMPLED: dict[str, tuple[str, ...]] = {
    "attacks/fgm.py": (f"{A}linear_oracles.py -k fgm",),
    "attacks/rfgsm.py": (f"{A}rfgsm.py",),
    "attacks/momentum.py": (f"{A}momentum.py",),
    "attacks/diverse.py": (f"{A}diverse.py",),
    "attacks/translation.py": (f"{A}translation.py",),
    "attacks/pgd.py": (f"{A}pgd_and_noise.py", f"{A}linear_oracles.py -k pgd"),
    "attacks/apgd.py": (f"{A}apgd.py",),
    "attacks/apgd_l1.py": (f"{A}apgd.py", exact("apgd and l1")),
    "attacks/square.py": (f"{A}square.py",),
    "attacks/fab.py": (f"{A}fab.py",),
    "attacks/ddn.py": (f"{A}minimal_norm_oracles.py -k DDN", exact("ddn")),
    "attacks/fmn.py": (f"{A}published_forms.py -k FMN", f"{A}minimal_norm_oracles.py -k FMN"),
    "attacks/deepfool.py": (f"{A}linear_oracles.py -k deepfool", f"{A}published_forms.py -k deepfool"),
    "attacks/carlini_wagner.py": (f"{A}minimal_norm_oracles.py -k CarliniWagner", exact("carlini")),
    "attacks/lbfgs.py": (f"{A}peers_minimal_norm.py -k lbfgs", exact("lbfgs"), f"{A}calibration.py"),
    "attacks/quasi_newton.py": (f"{A}quasi_newton.py", f"{A}peers_minimal_norm.py -k lbfgs", exact("lbfgs")),
    "attacks/hop_skip_jump.py": (f"{A}hop_skip_jump.py", exact("hop")),
    "attacks/balls.py": (f"{A}balls.py",),
    "attacks/hyperplane.py": (f"{A}hyperplane.py",),
    "attacks/losses.py": (f"{A}threat_and_losses.py",),
    "attacks/iterates.py": (f"{A}iterates.py",),
    "attacks/access.py": (f"{A}access.py", f"{A}detector_view.py"),
    "attacks/ensemble.py": (f"{A}ensembles.py", f"{A}worst_case_order.py"),
    "benchmark/tasks/evaluation.py": SCORING,
    "results/statistics.py": ("tests/results/test_statistics.py",),
}
"""Modules whose arithmetic is changed at random, and the tests that should notice."""

SWAPS: dict[type[ast.AST], type[ast.AST]] = {
    **{ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult},
    **{ast.Lt: ast.GtE, ast.LtE: ast.Gt, ast.Gt: ast.LtE, ast.GtE: ast.Lt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq},
    **{ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd},
}
SIGNS = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/", ast.Lt: "<", ast.LtE: "<=", ast.Gt: ">", ast.GtE: ">="}
SIGNS |= {ast.Eq: "==", ast.NotEq: "!=", ast.BitAnd: "&", ast.BitOr: "|", ast.Pow: "**"}
NAMES = {"minimum": "maximum", "maximum": "minimum", "argmin": "argmax", "argmax": "argmin", "amax": "amin"}


def places(file: str, text: str) -> Iterator[Mutant]:
    """Every change of an operator, a comparison, a sign or a minimum within the functions of a module."""
    tree, raw = ast.parse(text), text.encode()
    starts = [0, *itertools.accumulate(len(line) for line in raw.splitlines(keepends=True))]
    checks = {
        id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) and f.name == "__post_init__" for n in ast.walk(f)
    }
    inside = [node for function in ast.walk(tree) if isinstance(function, ast.FunctionDef) for node in function.body]
    seen: set[int] = set()
    for node in (each for statement in inside for each in ast.walk(statement)):
        if id(node) in seen or id(node) in checks:
            continue
        seen.add(id(node))
        became = changed(node)
        if became:
            line, column = node.lineno, node.col_offset  # type: ignore[attr-defined]
            end = starts[node.end_lineno - 1] + node.end_col_offset  # type: ignore[attr-defined]
            was = raw[starts[line - 1] + column : end].decode()
            yield Mutant(f"{file}:{line}: {was} -> {became}", file, f"{line}:{column}:{was}", became, SAMPLED[file])


def changed(node: ast.AST) -> str | None:
    """The text of the node after its change, in brackets; None where there is nothing to change."""
    if isinstance(node, ast.BinOp) and type(node.op) in SWAPS and not isinstance(node.left, ast.Constant | ast.JoinedStr):
        sign = SIGNS[SWAPS[type(node.op)]]  # type: ignore[index]
        return f"(({ast.unparse(node.left)}) {sign} ({ast.unparse(node.right)}))"
    if isinstance(node, ast.Compare) and len(node.ops) == 1 and type(node.ops[0]) in SWAPS:
        sign = SIGNS[SWAPS[type(node.ops[0])]]  # type: ignore[index]
        return f"(({ast.unparse(node.left)}) {sign} ({ast.unparse(node.comparators[0])}))"
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub | ast.Not | ast.Invert):
        return f"({ast.unparse(node.operand)})"
    if isinstance(node, ast.Attribute) and node.attr in NAMES:
        return f"{ast.unparse(node.value)}.{NAMES[node.attr]}"
    return None


def sampled(count: int, seed: int) -> list[Mutant]:
    """So many changes, drawn over all modules of `SAMPLED`."""
    every = [one for file in SAMPLED for one in places(file, (ROOT / file).read_text(encoding="utf-8"))]
    return random.Random(seed).sample(every, min(count, len(every)))


def weakened(mutant: Mutant, text: str) -> str:
    """The text of the module with the change. Raises ValueError where there is not exactly one place for it."""
    head = mutant.old.split(":", 2)
    if len(head) == 3 and head[0].isdigit() and head[1].isdigit():
        lines = text.splitlines(keepends=True)
        start = sum(len(line.encode()) for line in lines[: int(head[0]) - 1]) + int(head[1])
        raw, was = text.encode(), head[2].encode()
        if raw[start : start + len(was)] == was:
            return (raw[:start] + mutant.new.encode() + raw[start + len(was) :]).decode()
    if text.count(mutant.old) != 1:
        raise ValueError(
            f"Expected one place for {mutant.name!r} in {mutant.file}, got {text.count(mutant.old)}: mend the mutant"
        )
    return text.replace(mutant.old, mutant.new)


def installed(file: str, folder: Path) -> Path:
    """Where a file of the repository lies in a copy."""
    room, _, rest = file.partition("/")
    return folder / "advbench" / rest if room == "benchmark" else folder / "advbench" / room / rest


def copy_to(folder: Path) -> None:
    """The package as it is imported, and the tests."""
    leave = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "benchmark", folder / "advbench", ignore=leave)
    for room in ROOMS:
        shutil.copytree(ROOT / room, folder / "advbench" / room, ignore=leave)
    shutil.copytree(ROOT / "tests", folder / "tests", ignore=leave)
    shutil.copy(ROOT / "pyproject.toml", folder)


def examine(test: str, folder: str) -> NoReturn:
    """Run one argument of pytest on the copy, and end with pytest's exit status; in a process of its own."""
    os.chdir(folder)
    sys.path.insert(0, folder)
    sys.dont_write_bytecode = True
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    path, _, chosen = test.partition(" -k ")
    import advbench

    if not str(advbench.__file__).startswith(folder):
        os._exit(5)
    os._exit(int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", path, *(["-k", chosen] if chosen else [])])))


def passes(test: str, folder: Path) -> bool | None:
    """Whether an argument of pytest passes on the copy; None where it took too long.

    It runs in a fork, which has the heavy libraries and not yet the package.
    """
    child = multiprocessing.get_context("fork").Process(target=examine, args=(test, str(folder)))
    child.start()
    child.join(LIMIT)
    if child.exitcode is None:
        child.kill()
        child.join()
        return None
    if child.exitcode == 5:
        raise RuntimeError(f"Expected tests in {test!r} that run on the copy, got none: mend the mutant's list")
    return child.exitcode == 0


def run(mutants: Sequence[Mutant]) -> int:
    """Try each mutant; returns how many survived. Raises RuntimeError where its tests fail without a change."""
    survivors, sound = [], set()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        copy_to(folder)
        for number, mutant in enumerate(mutants, 1):
            found: bool | None = True
            for one in mutant.tests:
                if one not in sound and passes(one, folder) is not True:
                    raise RuntimeError(f"Expected {one} to pass without a change")
                sound.add(one)
                place = installed(mutant.file, folder)
                text = place.read_text(encoding="utf-8")
                place.write_text(weakened(mutant, text), encoding="utf-8")
                found = passes(one, folder)
                place.write_text(text, encoding="utf-8")
                if not found:
                    break
            survivors += [mutant.name] if found else []
            print(
                f"{number:4} {'SURVIVED' if found else 'killed' if found is False else 'no end'}  {mutant.name}", flush=True
            )
    print(
        f"killed {len(mutants) - len(survivors)} of {len(mutants)}", *(f"  survived: {name}" for name in survivors), sep="\n"
    )
    return len(survivors)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="beginnings of names; all where none is given")
    parser.add_argument("--sampled", type=int, metavar="N", help="so many random changes of the arithmetic instead")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--list", action="store_true")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(1)
    mutants = sampled(chosen.sampled, chosen.seed) if chosen.sampled else list(MUTANTS)
    mutants = [one for one in mutants if not chosen.names or one.name.startswith(tuple(chosen.names))]
    if chosen.list:
        print(*(one.name for one in mutants), sep="\n")
        return 0
    return 1 if run(mutants) else 0


if __name__ == "__main__":
    sys.exit(main())
