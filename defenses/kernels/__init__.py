"""Kernels of the defenses: quadratic forms and penalties of input gradients, fast, beside an obvious form in the tests."""
