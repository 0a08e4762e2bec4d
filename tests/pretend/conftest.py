"""Tests on the pretend device, in a process of their own: with ``ADVBENCH_PRETEND=1 pytest tests/pretend``.

A device must be known before a process's first backward, and torch would go on to count it among its accelerators in all
other tests; `tests/test_pretend_device.py` runs these.
"""

from __future__ import annotations

import os

import pytest
import torch

from tests.pretend import device as pretend

collect_ignore_glob = [] if os.environ.get("ADVBENCH_PRETEND") else ["test_*.py"]

if os.environ.get("ADVBENCH_PRETEND") and pretend.AVAILABLE:
    pretend.register()


@pytest.fixture(scope="session", autouse=True)
def _one_thread():
    if not pretend.AVAILABLE:
        pytest.skip("this torch has no devices that are written in Python")
    torch.set_num_threads(1)


@pytest.fixture
def device() -> torch.device:
    return torch.device(pretend.KIND, 0)
