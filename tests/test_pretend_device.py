"""Everything that computes runs on a device other than the processor: `tests/pretend`, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.pretend.device import AVAILABLE


@pytest.mark.slow
def test_everything_runs_on_a_device_that_is_not_the_processor():
    if not AVAILABLE:
        pytest.skip("this torch has no devices that are written in Python")
    here = Path(__file__).parent
    environment = {**os.environ, "ADVBENCH_PRETEND": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(here / "pretend")]
    done = subprocess.run(command, cwd=here.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert " passed" in done.stdout
