"""The zoo: architectures, data sets, the training loop, optimizers and checkpoints.

`ARCHITECTURES` and `DATASETS` map a name to an entry-point reference (``module:factory``), the form that plug-ins use too.
"""

ARCHITECTURES: dict[str, str] = {}
DATASETS: dict[str, str] = {}
