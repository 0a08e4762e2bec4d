"""Prints, as JSON, how often the processor waits for the pretend device in a step of each attack that is counted."""

import json

import torch

from tests.pretend import device as pretend

if __name__ == "__main__":
    pretend.register()
    from tests.pretend.test_waits import PER_STEP, waited

    place = torch.device(pretend.KIND, 0)
    rows = [
        {"attack": name, "norm": norm, "waits a step": (waited(name, norm, 12, place) - waited(name, norm, 6, place)) / 6}
        for name, norm in PER_STEP
    ]
    print(json.dumps(rows))
