"""The papers' tables beside ours: `advbench reproduce`."""
