"""Our own baselines, against which `advbench check` holds the runs of our continuous integration."""
