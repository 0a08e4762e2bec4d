"""Runs the tasks of a plan: a scheduler that says which and when, and engines that say where."""
