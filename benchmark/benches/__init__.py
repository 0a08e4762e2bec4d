"""Benches: what a kernel costs beside the memory-bandwidth limit and beside its rivals, as ratios."""
