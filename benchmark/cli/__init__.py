"""The command line: commands, their options, what the terminal shows."""
