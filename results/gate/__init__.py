"""The gate: baselines, what of two runs can be compared, and whether a number is worse than its baseline."""
