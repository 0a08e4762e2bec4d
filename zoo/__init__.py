"""The zoo: architectures, data sets, the training loop, optimizers and checkpoints.

`ARCHITECTURES` and `DATASETS` map a name to an entry-point reference (``module:factory``), the form that plug-ins use too.
An architecture's factory is called as ``factory(shape, n_classes)``, a data set's as ``factory(path)``.
"""

_NETS = "advbench.zoo.architectures"
_DATA = "advbench.zoo.datasets"

ARCHITECTURES: dict[str, str] = {
    "gu2014/n100-100-10": f"{_NETS}.gu2014:n100_100_10",
    "gu2014/n200-200-10": f"{_NETS}.gu2014:n200_200_10",
    "gu2014/ae400-10": f"{_NETS}.gu2014:ae400_10",
    "gu2014/convnet": f"{_NETS}.gu2014:convnet",
    "malade2018/a": f"{_NETS}.malade2018:a",
    "malade2018/b": f"{_NETS}.malade2018:b",
    "malade2018/c": f"{_NETS}.malade2018:c",
    "malade2018/d": f"{_NETS}.malade2018:d",
}
DATASETS: dict[str, str] = {"digits": f"{_DATA}:digits"}
