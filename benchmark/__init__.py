"""advbench: a benchmark and leaderboard harness for adversarial robustness.

`advbench.run` does what ``advbench run`` does, `advbench.evaluate` attacks a model of yours, `advbench.attack` returns the
adversarial images of one attack on it, and `advbench.adversarial_images` those of a finished run. Importing the package is
cheap: public names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from advbench.api import RunResult, run
    from advbench.records.fixed_sets import FixedSet, fixed_set
    from advbench.records.gating import check, write_baseline
    from advbench.records.kept_images import AdversarialImages, adversarial_images
    from advbench.records.reporting import report
    from advbench.records.versions import history
    from advbench.reports.evaluation_result import EvaluationResult
    from advbench.user_models.attacking import AttackError, AttackResult, attack
    from advbench.user_models.target import evaluate

__version__ = "0.1.0"
__all__ = [
    "AdversarialImages",
    "AttackError",
    "AttackResult",
    "EvaluationResult",
    "FixedSet",
    "RunResult",
    "__version__",
    "adversarial_images",
    "attack",
    "check",
    "evaluate",
    "fixed_set",
    "history",
    "report",
    "run",
    "write_baseline",
]


def __getattr__(name: str) -> object:
    if name == "report":
        from advbench.records import reporting

        return reporting.report
    if name in ("check", "write_baseline"):
        from advbench.records import gating

        return getattr(gating, name)
    if name == "history":
        from advbench.records import versions

        return versions.history
    if name in ("FixedSet", "fixed_set"):
        from advbench.records import fixed_sets

        return getattr(fixed_sets, name)
    if name in ("AdversarialImages", "adversarial_images"):
        from advbench.records import kept_images

        return getattr(kept_images, name)
    if name in ("AttackError", "AttackResult", "attack"):
        from advbench.user_models import attacking

        return getattr(attacking, name)
    if name in ("EvaluationResult", "evaluate"):
        from advbench.reports import evaluation_result
        from advbench.user_models import target

        return getattr(target if name == "evaluate" else evaluation_result, name)
    if name in __all__:
        from advbench import api

        return getattr(api, name)
    raise AttributeError(f"module 'advbench' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*__all__, *(name for name in globals() if name.startswith("__"))})
