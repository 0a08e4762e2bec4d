"""Compiled models to attack faster; what counts is always said by the model as it is."""

from __future__ import annotations

import dataclasses
import os
import shutil
import warnings
from importlib import util

import torch

from advbench.defenses.defended import Surrogate
from advbench.devices import traits

BACKEND = "inductor"
_OF_COPIES = r"The \.grad attribute of a Tensor that is not a leaf Tensor"
"""What torch's compiler warns of where a model is given a copy of the images, through which gradients flow on."""


def check_compiler(device: torch.device) -> None:
    """Raise ValueError, in one line, if torch.compile has no compiler for models on `device`."""
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else ["g++", "clang++", "c++", "cl"]
    if not any(shutil.which(name) for name in wanted):
        raise ValueError(
            f"Expected a C++ compiler for `compile` ({' or '.join(wanted)}), got none: install one, or leave `compile` out"
        )
    if traits(device).triton and util.find_spec("triton") is None:
        raise ValueError("Expected Triton for `compile` on a GPU, got none: install it, or leave `compile` out")


def compiled(source: Surrogate) -> Surrogate:
    """The same model with its forward compiled for any number of images.

    A stochastic model stays as it is: its draws are made in Python, between the pieces that could be compiled.
    """
    if source.stochastic:
        return source
    warnings.filterwarnings("ignore", message=_OF_COPIES)
    model: torch.nn.Module = torch.compile(source.model, dynamic=True, backend=BACKEND)  # type: ignore[assignment]
    return dataclasses.replace(source, model=model)
