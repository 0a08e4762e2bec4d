"""The former place of `draws` and of `calibration.score_scale`."""

from advbench.attacks.calibration import score_scale
from advbench.attacks.draws import CAP, LEVEL, Convergence, converged_draws

__all__ = ["CAP", "LEVEL", "Convergence", "converged_draws", "score_scale"]
