"""Every attack on the pretend device: nothing strays to the processor, and the images are those of the processor."""

import pytest
import torch

from advbench import conformance
from advbench.attacks import ATTACKS
from advbench.attacks.access import DetectorView, WhiteBox
from advbench.attacks.threat import Targeted, Untargeted
from advbench.conformance import Net, images, labels, run, threat_of
from advbench.registry.specs import Spec

FEW = 4
KINDS = ("plain", "stochastic", "targeted", "detected")
ENSEMBLES = ("auto", "autoattack", "autoattack-rand", "worst-case")
"""Their parts stand in cells of their own."""


def cells():
    """Every attack in every norm; the other kinds of cells in one norm of each, but for ensembles."""
    for name in ATTACKS:
        attack = conformance.shortened(Spec(name))
        for number, norm in enumerate(sorted(attack.norms)):
            for kind in KINDS:
                known = kind != "targeted" or attack.targeted
                if known and (kind == "plain" or (number == 0 and name not in ENSEMBLES)):
                    yield pytest.param(attack, norm, kind, id=f"{name}-{norm}-{kind}")


class Score(torch.nn.Module):
    """A detector that rejects bright images."""

    def forward(self, x):
        return x.flatten(1).mean(dim=1) - 0.6


def attacked(attack, norm, kind, device):
    model, x = Net(), images(FEW)
    y = labels(model, x, wrong=(1,))
    goal = Targeted(y.to(device), (y + 1).remainder(4).to(device)) if kind == "targeted" else Untargeted(y.to(device))
    detector = DetectorView(Score(), y.to(device), False, 1.0) if kind == "detected" else None
    return run(
        attack,
        model.to(device),
        x.to(device),
        goal,
        threat_of(attack, norm),
        index=torch.arange(FEW, device=device),
        stochastic=kind == "stochastic",
        draws=2 if kind == "stochastic" and attack.knowledge is WhiteBox else 1,
        detector=detector,
    )


@pytest.mark.parametrize(("attack", "norm", "kind"), list(cells()))
def test_an_attack_stays_on_its_device(device, attack, norm, kind):
    found = attacked(attack, norm, kind, device)
    assert found.device == device
    expected = attacked(attack, norm, kind, torch.device("cpu"))
    # A projection in l1 goes another way there, to the same point but for rounding.
    torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-5 if norm == "l1" else 0)
