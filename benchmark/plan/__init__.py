"""What is to be computed: the registry crossed into tasks."""
