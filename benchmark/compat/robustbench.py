"""The interface of RobustBench's evaluation (Croce et al. 2021, arXiv:2010.09670), answered by this harness."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from advbench.compat.autoattack import NORMS, AutoAttackInterface
from advbench.files import temporary_folder, write_atomically
from advbench.registry import registry
from advbench.reports.export import export
from advbench.reports.robustbench import NORMS as ROBUSTBENCH_NORMS
from advbench.user_models.arrays import device_of

_USUAL = {("imagenet", "linf"): 4 / 255, ("cifar100", "linf"): 8 / 255}
"""RobustBench's radii, where they are not the data set's own here."""
_BY_HAND = ("imagenet", "imagenet_3d")


def benchmark(
    model: nn.Module | Sequence[nn.Module],
    n_examples: int = 10_000,
    dataset: object = "cifar10",
    threat_model: object = "Linf",
    to_disk: bool = False,
    model_name: str | None = None,
    data_dir: str | Path = "./data",
    corruptions: Sequence[str] | None = None,  # noqa: ARG001 - of threats that are refused
    device: torch.device | str | None = None,
    batch_size: int = 32,
    eps: float | None = None,
    log_path: str | Path | None = None,
    preprocessing: object = None,
    aa_state_path: str | Path | None = None,
) -> tuple[float, float]:
    """Clean accuracy and robust accuracy of a model, each in [0, 1], by `AutoAttack` in its standard version.

    model: images (n, c, h, w) in [0, 1] -> logits; a random one belongs to `AutoAttack` with version ``rand``.
    n_examples: the first so many test images. dataset: ``cifar10``, ``cifar100``, or any data set of advbench, such as
    ``mnist`` or ``npz:PATH``; the library's own enumerations too. threat_model: ``Linf``, ``L2`` or ``L1``. eps: the radius,
    if None the usual one of the data set and norm.
    data_dir: where the data lies; if there is no such folder, `$ADVBENCH_DATA` or the cache, as everywhere here.
    device: where the model is moved; if None it stays. batch_size: images at a time. log_path: a file that the result is
    appended to. aa_state_path: a folder that keeps finished work, so that the same call continues after a kill.
    to_disk, model_name: also write ``model_info/DATASET/THREAT/MODEL_NAME.json`` in RobustBench's form.

    Not honoured, each with a line that says so: corruptions, lists of models, `preprocessing` (put it into the model), and
    ImageNet by name (give ``folder:PATH``). Raises ValueError, in one line, for what does not fit.
    """
    norm, name = _threat(threat_model), str(getattr(dataset, "value", dataset))
    _check(model, name, preprocessing)
    if to_disk:
        _check_name(model_name, norm)
    assert isinstance(model, nn.Module)
    folder = Path(data_dir)
    data = registry.load_dataset(name, folder if folder.is_dir() else None)
    shown = data.test.first(n_examples)
    radius = eps if eps is not None else _USUAL.get((name, NORMS[norm]), data.radii.get(NORMS[norm]))
    if radius is None:
        raise ValueError(f"Expected `eps` for {norm} on {name}, which has no usual one, got None")
    if device is not None:
        model.to(device)
    place = device_of(model)
    adversary = AutoAttackInterface(model, norm=norm, eps=radius, version="standard", device=place, log_path=log_path)
    with temporary_folder() as temporary:
        kept = Path(aa_state_path) if aa_state_path is not None else temporary
        adversary.dataset = name
        adversary.run_standard_evaluation(shown.x, shown.y, bs=batch_size, state_path=kept)
        result = adversary.result
        assert result is not None
        assert result.clean is not None
        assert result.robust is not None
        if to_disk:
            _write_info(kept, name, norm, str(model_name), adversary)
    return result.clean.value, result.robust.value


def clean_accuracy(
    model: nn.Module, x: Tensor, y: Tensor, batch_size: int = 100, device: torch.device | str | None = None
) -> float:
    """The share of images (n, c, h, w) whose labels (n,) a model answers, in [0, 1]. device: where it is moved."""
    if device is not None:
        model.to(device)
    return AutoAttackInterface(model, device=device_of(model)).clean_accuracy(x, y, bs=batch_size)


def load_cifar10(n_examples: int | None = None, data_dir: str | Path = "./data") -> tuple[Tensor, Tensor]:
    """The first test images of CIFAR-10, (n, 3, 32, 32) in [0, 1], and their labels (n,). data_dir: as in `benchmark`."""
    return _loaded("cifar10", n_examples, data_dir)


def load_cifar100(n_examples: int | None = None, data_dir: str | Path = "./data") -> tuple[Tensor, Tensor]:
    """The first test images of CIFAR-100, as `load_cifar10` has those of CIFAR-10."""
    return _loaded("cifar100", n_examples, data_dir)


def _loaded(name: str, n_examples: int | None, data_dir: str | Path) -> tuple[Tensor, Tensor]:
    folder = Path(data_dir)
    shown = registry.load_dataset(name, folder if folder.is_dir() else None).test.first(n_examples)
    return shown.x, shown.y


def _threat(threat_model: object) -> str:
    name = str(getattr(threat_model, "value", threat_model))
    if name not in NORMS:
        raise ValueError(f"Expected `threat_model` to be one of {', '.join(NORMS)}, got {name!r}")
    return name


def _check(model: object, dataset: str, preprocessing: object) -> None:
    """Refuse, in one line, what cannot be honoured."""
    if not isinstance(model, nn.Module):
        raise ValueError(f"Expected one model, an nn.Module, got {type(model).__name__}")
    if preprocessing is not None:
        raise ValueError("Expected no `preprocessing`: put it into the model, so that epsilon stays in pixels")
    if dataset in _BY_HAND:
        raise ValueError(f"Expected images of yours in place of {dataset}: dataset='folder:PATH', with test/CLASS/IMAGE")


def _check_name(model_name: str | None, norm: str) -> None:
    """Refuse, in one line, what cannot be written to the disk."""
    if not model_name or not model_name.isprintable() or Path(model_name).name != model_name:
        raise ValueError(f"Expected a `model_name` that can be the name of a file with to_disk=True, got {model_name!r}")
    if norm not in ROBUSTBENCH_NORMS.values():
        raise ValueError(f"Expected to_disk=False with {norm}, for which RobustBench has no board")


def _write_info(records: Path, dataset: str, norm: str, model_name: str, adversary: AutoAttackInterface) -> None:
    """The model_info of the one model that records are of, by the name that it was given."""
    assert adversary.result is not None
    with temporary_folder() as folder:
        (found,) = export({records: [adversary.result.cells[0][0].key]}, folder, "robustbench")
        info = json.loads(found.read_text(encoding="utf-8"))
    info |= {"name": model_name, "dataset": dataset, "unreliable": bool(adversary.flags)}
    place = Path("model_info") / dataset.replace("/", "-") / norm / f"{model_name}.json"
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json.dumps(info, indent=2, ensure_ascii=False) + "\n")
