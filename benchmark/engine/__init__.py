"""Runs the tasks of a plan."""
