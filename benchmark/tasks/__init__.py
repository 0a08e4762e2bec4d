"""The kinds of task, and what each does in a worker."""
