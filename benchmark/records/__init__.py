"""Reports, gate and fixed sets from the records of a run."""
