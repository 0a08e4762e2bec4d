"""The interface of AutoAttack (Croce & Hein 2020, arXiv:2003.01690), answered by this harness."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from advbench.compat.callables import Forward, as_module
from advbench.compat.settings import (
    KNOWN,
    RAND,
    STANDARD,
    ApgdSettings,
    FabSettings,
    SquareSettings,
    TargetedApgdSettings,
    ensemble_of,
    settings_of,
)
from advbench.engine.scheduler import Status
from advbench.records.kept_images import AdversarialImages, images_of
from advbench.registry.specs import Spec
from advbench.reports.evaluation_result import EvaluationResult
from advbench.user_models.arrays import folder_of, split_of
from advbench.user_models.attacking import AttackError, margins
from advbench.user_models.target import Live, evaluate_live
from advbench.user_models.weights import Own

NORMS = {"Linf": "linf", "L2": "l2", "L1": "l1"}
_SELDOM = 30.0


class AutoAttackInterface:
    """An evaluation by an ensemble of attacks, with the signature of the authors' class.

    forward_pass: a module, or a function of images: (n, c, h, w) in [0, 1] -> logits (n, classes). A module is evaluated in
    evaluation mode and comes back as it was. norm: ``Linf``, ``L2`` or ``L1``. eps: the radius, in pixel units. seed: of all
    random draws, 0 if None. verbose: whether the result is printed. log_path: a file that it is appended to.

    version: what runs.
    ``standard``: advbench's implementation of the standard version, the registered attack `autoattack`: APGD on the
    cross-entropy, targeted APGD, targeted FAB and Square, with the authors' budgets, each on the images that are left.
    ``rand``: `autoattack-rand`, for random models: APGD on the cross-entropy and on the difference of logits ratio, with
    gradients averaged over 20 passes.
    ``custom``: the attacks of `attacks_to_run`, in that order, each on the images that are left: `worst-case`.
    ``auto``: advbench's `auto`, which spends its passes on images that are close to breaking; not in the authors' class.
    The settings `apgd` and `apgd_targeted` (`n_restarts`, `n_iter`, `eot_iter`, `n_target_classes`), `fab` (`n_iter`,
    `n_target_classes`) and `square` (`n_queries`, `p_init`), and `attacks_to_run`, may be set before a run; the named
    attacks then run with these.

    Numbers differ from the authors' code by other random draws. Not honoured, each with a line that says so: TensorFlow
    models, the version ``plus`` and several starts of FAB or Square, other attributes of the attacks. `device` is where a
    function is asked that calls no module; a module is attacked where it is.

    After a run `result` holds all of it (`advbench.EvaluationResult`): intervals, flags, every image. Raises ValueError, in
    one line, for what does not fit.
    """

    def __init__(
        self,
        forward_pass: Forward | nn.Module,
        norm: str = "Linf",
        eps: float = 0.3,
        seed: int | None = None,
        verbose: bool = True,
        attacks_to_run: Sequence[str] = (),
        version: str = "standard",
        is_tf_model: bool = False,
        device: str | torch.device = "cuda",
        log_path: str | Path | None = None,
    ) -> None:
        if is_tf_model:
            raise ValueError("Expected a PyTorch model, got is_tf_model=True: export it to ONNX for `advbench evaluate`")
        if norm not in NORMS:
            raise ValueError(f"Expected `norm` to be one of {', '.join(NORMS)}, got {norm!r}")
        if attacks_to_run and version != "custom":
            raise ValueError(
                f"Expected version='custom' with `attacks_to_run`, got version={version!r}, which names its own"
            )
        self.model, self.dataset = as_module(forward_pass, device), "images"
        self.norm, self.epsilon, self.seed = norm, float(eps), seed
        self.verbose, self.log_path = verbose, log_path
        self.result: EvaluationResult | None = None
        self._said = 0.0
        self.attacks_to_run: list[str] = list(attacks_to_run)
        self.set_version(version)

    def set_version(self, version: str) -> None:
        """Choose what runs: ``standard``, ``rand``, ``custom`` or ``auto``. Settings go back to those of the version."""
        if version == "plus":
            raise ValueError(
                "Expected version standard, rand, custom or auto, got plus, which starts FAB five times, as advbench's FAB "
                "cannot: name the attacks with version='custom'"
            )
        if version not in ("standard", "rand", "custom", "auto"):
            raise ValueError(f"Expected version standard, rand, custom or auto, got {version!r}")
        self.version, self._settings = version, settings_of(version, self.norm)
        if version != "custom":
            self.attacks_to_run = list(RAND if version == "rand" else STANDARD)

    @property
    def apgd(self) -> ApgdSettings:
        """Settings of ``apgd-ce`` and ``apgd-dlr``."""
        return self._settings.apgd

    @property
    def apgd_targeted(self) -> TargetedApgdSettings:
        """Settings of ``apgd-t``."""
        return self._settings.apgd_targeted

    @property
    def fab(self) -> FabSettings:
        """Settings of ``fab`` and ``fab-t``."""
        return self._settings.fab

    @property
    def square(self) -> SquareSettings:
        """Settings of ``square``."""
        return self._settings.square

    @property
    def flags(self) -> list[dict[str, str | int]]:
        """Signs that the last run's robust accuracy is an upper bound; none before a run."""
        return [] if self.result is None else self.result.flags

    def run_standard_evaluation(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """The worst image of each example, (n, c, h, w); with `return_labels` also the model's labels for them, (n,).

        x_orig, y_orig: images (n, c, h, w) in [0, 1] and labels (n,). Images that withstand, or were wrong before, come back
        unchanged. bs: images at a time. state_path: a folder that keeps finished work, so that the same call continues after
        a kill; what is kept counts for the same model, images and attacks alone.
        Raises AttackError if an attack fails or leaves the threat.
        """
        ensemble = ensemble_of(self._named(), self._settings, self.norm)
        (found,) = self._run([ensemble], x_orig, y_orig, bs, state_path)
        return (found, self._labels(found, y_orig, bs)) if return_labels else found

    def run_standard_evaluation_individual(
        self,
        x_orig: Tensor,
        y_orig: Tensor,
        bs: int = 250,
        return_labels: bool = False,
        state_path: str | Path | None = None,
    ) -> dict[str, Tensor] | dict[str, tuple[Tensor, Tensor]]:
        """The images of every attack of `attacks_to_run` on its own, by its name; all else as `run_standard_evaluation`."""
        named = self._named()
        images = self._run([self._settings.spec(name) for name in named], x_orig, y_orig, bs, state_path)
        found = dict(zip(named, images, strict=True))
        if not return_labels:
            return found
        return {name: (x_adv, self._labels(x_adv, y_orig, bs)) for name, x_adv in found.items()}

    def clean_accuracy(self, x_orig: Tensor, y_orig: Tensor, bs: int = 250) -> float:
        """The share of images that the model gets right, in [0, 1]."""
        return float((self._labels(x_orig, y_orig, bs) == y_orig).double().mean())

    def get_seed(self) -> int:
        """The seed of all random draws."""
        return 0 if self.seed is None else int(self.seed)

    def _named(self) -> list[str]:
        """The attacks that run. ValueError, in one line, for none or unknown ones."""
        named = ["auto"] if self.version == "auto" else list(dict.fromkeys(self.attacks_to_run))
        unknown = [name for name in named if name not in KNOWN and self.version != "auto"]
        if unknown or not named:
            raise ValueError(f"Expected `attacks_to_run` from {', '.join(KNOWN)}, got {unknown or 'none'}")
        return named

    def _labels(self, x: Tensor, y_orig: Tensor, bs: int) -> Tensor:
        """The model's labels for images x, (n,), where y_orig is."""
        with torch.inference_mode(False):
            live = self._live(x, y_orig, bs)
            return margins(live, live.test.x, self.get_seed())[1].to(y_orig.device)

    def _live(self, x_orig: Tensor, y_orig: Tensor, bs: int) -> Live:
        draws = self._settings.draws
        return Live(
            self.model,
            split_of(x_orig, y_orig),
            Own(stochastic=draws > 1),
            draws=draws if draws > 1 else None,
            batch=int(bs),
            dataset=self.dataset,
        )

    def _run(
        self, specs: Sequence[Spec], x_orig: Tensor, y_orig: Tensor, bs: int, state_path: str | Path | None
    ) -> list[Tensor]:
        """The images of every attack. The result is kept, printed and logged."""
        live = self._live(x_orig, y_orig, bs)
        with _state(state_path) as folder:
            result = self._evaluated(live, specs, folder)
            found = [
                images_of(folder, record, examples, live.test.x) for record, examples in result.cells if examples is not None
            ]
        return [_worst(x_orig, each) for each in found]

    def _evaluated(self, live: Live, specs: Sequence[Spec], folder: Path) -> EvaluationResult:
        """The result of attacks, of which all were scored."""
        result = self.result = evaluate_live(
            live,
            folder,
            list(specs),
            alone=True,
            resume=True,
            watch=self._watch,
            norm=NORMS[self.norm],
            epsilon=self.epsilon,
            seed=self.get_seed(),
        )
        if result.interrupted:
            raise KeyboardInterrupt
        for record, examples in result.cells:
            if examples is None:
                raise AttackError(f"{record.attack['label']}: {record.reason}")
        self._said = 0.0
        self._say(str(result))
        return result

    def _say(self, text: str) -> None:
        if self.verbose:
            print(text, flush=True)
        if self.log_path is not None:
            with Path(self.log_path).open("a", encoding="utf-8") as file:
                file.write(f"{text}\n")

    def _watch(self, status: Status) -> None:
        """A line about an attack at work, every half minute."""
        for standing in status.crafts.values():
            if standing.seconds >= self._said + _SELDOM:
                self._said = standing.seconds
                self._say(f"{standing.label}: {standing}")


@contextmanager
def _state(state_path: str | Path | None) -> Iterator[Path]:
    """The folder that keeps finished work, a temporary one if None. ValueError where a file is in its place."""
    if state_path is not None and Path(state_path).is_file():
        raise ValueError(f"Expected `state_path` to be a folder of advbench's, or nothing yet, got a file at {state_path}")
    with folder_of(state_path) as folder:
        yield folder


def _worst(x_orig: Tensor, found: AdversarialImages) -> Tensor:
    """The images, with the clean one wherever the attack has not succeeded; of the type and place of x_orig."""
    x_adv = found.x_adv.to(x_orig.device, x_orig.dtype)
    return torch.where(found.success.to(x_orig.device)[:, None, None, None], x_adv, x_orig.detach())
