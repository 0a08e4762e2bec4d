"""Shaham et al. 2015: batch norm of the input, which the authors' scripts give to the robust nets alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.reproduction.clean import clean_by_seed
from advbench.reproduction.findings import Findings, RunFindings, ScoredCell
from advbench.reproduction.measured import SeedFigure
from advbench.reproduction.papers.shaham2015.nets import BASELINE, MNIST, MORE_SEEDS, NETS, NORMS, RADII, defenses, differs
from advbench.reproduction.study import Comparison, Ours, Pair, Scale, Settings, Study, above, claim_of

_PLAIN = "shaham2015/convnet"
_INPUT_BN = "shaham2015/convnet-bn"


def _input_bn_runs(scale: Scale) -> Mapping[str, Settings]:
    """The robust nets with the layer, which no claim is about, at full alone."""
    robust = defenses(RADII, NORMS if scale == "full" else ("linf",))[1:]
    runs = {
        "own gradients": _run(scale, _PLAIN, [{"name": BASELINE}, *robust]),
        "baseline, batch norm of the input": _run(scale, _INPUT_BN, [{"name": BASELINE}]),
    }
    return runs | {"robust, batch norm of the input": _run(scale, _INPUT_BN, robust)} if scale == "full" else runs


def _run(scale: Scale, architecture: str, trainings: list[Settings]) -> Settings:
    return {
        **MNIST[scale],
        "architecture": [architecture],
        "matrix": ["white-box"],
        "defense": trainings,
        "norm": "linf",
        "clip": False,
        "epsilon": [RADII["linf"]],
        "attack": ["fgsm"],
    }


def _input_bn(findings: Findings) -> Sequence[Comparison]:
    found = _cells(findings)
    clean = {key: clean_by_seed(run, cells) for key, (run, cells) in found.items()}
    own = {key: SeedFigure.of(cell.accuracy for cell in cells) for key, (_, cells) in found.items()}
    rows = tuple(
        (
            net + (", batch norm of the input" if architecture == _INPUT_BN else ""),
            (Pair(None, Ours(clean[net, architecture])), Pair(None, Ours(own[net, architecture]))),
        )
        for net, architecture in found
    )
    with_layer = ("baseline", _INPUT_BN)
    robust = [net for net, architecture in found if net != "baseline" and architecture == _PLAIN]
    claims = tuple(
        claim_of(
            f"shaham2015.input_bn.{which}",
            (above(f"{net} - baseline with input batch norm", values[net, _PLAIN], values[with_layer]) for net in robust),
        )
        for which, values in (("clean", clean), ("own", own))
    )
    columns = (("clean", "%"), (f"own fast-sign, ε {RADII['linf']:g}", "%"))
    caption = (
        "The convnet with and without batch norm of its input, which the authors' scripts give to the robust nets alone"
    )
    return (Comparison(caption, columns, rows, claims),)


def _cells(findings: Findings) -> Mapping[tuple[str, str], tuple[RunFindings, list[ScoredCell]]]:
    """By net and architecture, net by net: their run, and a cell for each of its seeds."""
    found = {}
    for net, defense in NETS.items():
        for architecture in (_PLAIN, _INPUT_BN):
            for run in findings.runs.values():
                if run.all(defense=defense, architecture=architecture):
                    seeds = run.plan.config.seed
                    cells = [run.one(seed=seed, defense=defense, architecture=architecture) for seed in seeds]
                    found[net, architecture] = run, cells
    return found


def _differs_input_bn(scale: Scale) -> Sequence[str]:
    return (*differs(scale), "the paper does not mention the layer; nothing of this is printed there")


STUDIES = (
    Study(
        "shaham2015.input_bn",
        "with and without batch norm of the input",
        _input_bn_runs,
        _input_bn,
        _differs_input_bn,
        scales=("small", "full"),
        more_seeds=MORE_SEEDS,
    ),
)
