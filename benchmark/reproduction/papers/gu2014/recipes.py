"""What training recipes do to the distances of Gu & Rigazio 2014 (arXiv:1412.5068), beside contraction.

Section 2.2 of the paper has a weight decay of 1e-3 on all layers but convolutions and does not say whether of half the
squared weights. AE400-10 is pre-trained in Szegedy et al. 2014 (arXiv:1312.6199), without a decay. Equation 5 penalises the
Jacobian of the whole network, which the paper calls ideal and does not run; equation 6 penalises each layer's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean

from advbench.registry.specs import Spec
from advbench.reproduction.findings import Findings, RunFindings
from advbench.reproduction.papers.gu2014.nets import NETS, PLAIN, by_seed, few_seeds, nearest, own
from advbench.reproduction.papers.gu2014.strengths import contraction, network_contraction
from advbench.reproduction.study import EVERY_SCALE, Comparison, Ours, Pair, Scale, Settings, Study

_DECAY, _HALVED = 1e-3, 5e-4
_PRETRAINED = "sparse-pretraining"


def _recipes(scale: Scale, net: str) -> dict[str, Spec]:
    """The trainings of a net by name; the first is what the others are compared with."""
    contracted, many = contraction(scale, net), scale in ("medium", "full")
    halved = {"weight decay 1e-3, half of the squares": Spec.of(PLAIN, {"coefficient": _HALVED})}
    scratch = {
        "weight decay 1e-3": Spec.of(PLAIN, {"coefficient": _DECAY}),
        **(halved if many or net != "AE400-10" else {}),
        "no weight decay": Spec("none"),
        "contraction (equation 6), weight decay 1e-3": contracted,
    }
    if net != "AE400-10":
        whole = "contraction of the network (equation 5), weight decay 1e-3"
        return {**scratch, **({whole: network_contraction()} if many else {})}
    pretrained = {
        "pre-trained, no weight decay": Spec.of(_PRETRAINED, {"weight_decay": 0.0}),
        "pre-trained, weight decay 1e-3": Spec.of(_PRETRAINED, {"weight_decay": _DECAY}),
    }
    if not many:
        return {**pretrained, **scratch}
    return {
        **pretrained,
        "pre-trained, weight decay 1e-3, half of the squares": Spec.of(_PRETRAINED, {"weight_decay": _HALVED}),
        **scratch,
        "contraction (equation 6), no weight decay": Spec.of(contracted.name, {**contracted.keywords, "weight_decay": 0.0}),
    }


def _nets(scale: Scale) -> tuple[str, ...]:
    return ("N100-100-10",) if scale == "smoke" else ("N100-100-10", "AE400-10")


def _runs(scale: Scale) -> Mapping[str, Settings]:
    runs = {
        net: {
            **own(scale, net),
            "matrix": ["white-box"],
            "norm": "l2",
            "defense": [str(spec) for spec in _recipes(scale, net).values()],
            "architecture": [NETS[net]],
            "attack": [nearest(scale, net)[0]],
        }
        for net in _nets(scale)
    }
    return few_seeds(scale, runs)


def _compare(findings: Findings) -> Sequence[Comparison]:
    rows = list[tuple[str, tuple[Pair, ...]]]()
    for net, run in findings.runs.items():
        there = {name: spec for name, spec in _known(net).items() if _ran(run, spec)}
        figures = {
            name: [by_seed(run, spec, figure, "ddn") for figure in ("clean_error", "mean_rms")]
            for name, spec in there.items()
        }
        first = fmean(next(iter(figures.values()))[1])
        for name, (error, distance) in figures.items():
            gain = Ours([100 * value / first - 100 for value in distance])
            rows.append((f"{net}, {name}", (Pair(None, Ours(error)), Pair(None, Ours(distance)), Pair(None, gain))))
    columns = (("test error", "%"), ("distortion, DDN", "RMS"), ("more than in the net's first row", "%"))
    note = "contraction and weight decay stand apart here: what a recipe gives by itself is no merit of contraction"
    return (Comparison("Recipes by the nearest adversarial", columns, tuple(rows), notes=(note,)),)


def _known(net: str) -> dict[str, Spec]:
    """What tells the trainings apart in the records, of whatever strength their contraction is."""

    def without_strength(spec: Spec) -> Spec:
        if spec.name != "deep-contractive":
            return spec
        told = {"jacobian": "layers", "weight_decay": _DECAY, **spec.keywords}
        return Spec.of(spec.name, {name: told[name] for name in ("jacobian", "weight_decay")})

    return {name: without_strength(spec) for name, spec in _recipes("full", net).items()}


def _ran(run: RunFindings, training: Spec) -> bool:
    """Whether a run has the training, whatever its strength."""
    found = (cell.record.target["defense"]["arguments"] for cell in run.all(defense=training.name))
    return any(all(arguments[name] == value for name, value in training.arguments) for arguments in found)


def _differs(scale: Scale) -> Sequence[str]:
    return (
        "the paper has no such table",
        {"smoke": "digits, N100-100-10", "full": "all images"}.get(scale, "N100-100-10 and AE400-10, 1,000 images"),
    )


STUDIES = (
    Study(
        "gu2014.recipes",
        "weight decay, pre-training and both forms of contraction",
        _runs,
        _compare,
        _differs,
        EVERY_SCALE,
    ),
)
