"""Defenses: training-time objectives, test-time purifiers, and their kernels.

`DEFENSES` maps a name to an entry-point reference (``module:factory``), the form that plug-ins use too.
"""

DEFENSES: dict[str, str] = {}
