"""`auto` and the nearest adversarial beside the attacks of Gu & Rigazio 2014 (arXiv:1412.5068), net by net."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from advbench.registry.specs import Spec
from advbench.reproduction.beside import beside, beside_table
from advbench.reproduction.findings import Findings, ScoredCell
from advbench.reproduction.papers.gu2014.attacker import radius
from advbench.reproduction.papers.gu2014.autoencoders import DEVIATIONS, denoiser, restorer
from advbench.reproduction.papers.gu2014.nets import attacked, few_seeds, plain_runs, shown, training_of
from advbench.reproduction.papers.gu2014.noise import KERNELS, blurred
from advbench.reproduction.papers.gu2014.strengths import contraction, decay
from advbench.reproduction.study import EVERY_SCALE, Comparison, Scale, Settings, Study


def _nets(scale: Scale) -> tuple[str, ...]:
    return {"smoke": shown(scale)[:1], "small": shown(scale)[:3]}.get(scale, shown(scale))


def _models(scale: Scale, net: str) -> list[Spec]:
    """The nets that claims name: bare, trained otherwise, and defended by what draws nothing at random."""
    trained = [Spec.parse(training_of(net)), contraction(scale, net), *filter(None, [decay(scale, net)])]
    if scale == "smoke":
        return trained[:2]
    blurs = [blurred(net, kernel) for kernel in KERNELS]
    return [*trained, *blurs, restorer(scale, net, net), *(denoiser(net, sigma) for sigma in DEVIATIONS)]


def _runs(scale: Scale) -> Mapping[str, Settings]:
    nets, nearest = _nets(scale), "ddn(steps=40)" if scale == "smoke" else "ddn(steps=200)"
    images = 20 if scale == "smoke" else 200
    models = {net: [str(spec) for spec in _models(scale, net)] for net in nets}
    runs = {
        _beside(net): beside(attacked(scale, net, specs), epsilon=radius(net), nearest=nearest, images=images)
        for net, specs in models.items()
    }
    return {**few_seeds(scale, plain_runs(scale, nets)), **runs}


def _beside(net: str) -> str:
    return f"{net}, beside"


def _compare(findings: Findings) -> Sequence[Comparison]:
    nets = [name for name in findings.runs if _beside(name) in findings.runs]

    def paper(name: str, label: str) -> ScoredCell | None:
        (net,) = (net for net in nets if _beside(net) == name)
        found = findings[net].all(seed=findings.seeds[0], target=label, attack="lbfgs")
        return found[0] if found else None

    return (beside_table(findings, [_beside(net) for net in nets], paper),)


def _differs(scale: Scale) -> Sequence[str]:
    return (
        "the paper has no such table; the radius is the distortion that it prints for the bare net's adversarials",
        "nets that draw noise are left out" + ("; so is the ConvNet" if scale == "small" else ""),
    )


STUDIES = (
    Study(
        "gu2014.beside",
        "auto and the nearest adversarials beside the paper's attack",
        _runs,
        _compare,
        _differs,
        EVERY_SCALE,
    ),
)
