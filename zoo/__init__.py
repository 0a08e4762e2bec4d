"""The zoo: architectures, data sets, the training loop, optimizers and checkpoints.

`ARCHITECTURES` and `DATASETS` map a name to an entry-point reference (``module:factory``), the form that plug-ins use too.
An architecture's factory is called as ``factory(shape, n_classes)``, a data set's as ``factory(path)``.
"""

_NETS = "advbench.zoo.architectures"
_DATA = "advbench.zoo"

ARCHITECTURES: dict[str, str] = {
    "gu2014/n100-100-10": f"{_NETS}.gu2014:n100_100_10",
    "gu2014/n200-200-10": f"{_NETS}.gu2014:n200_200_10",
    "gu2014/ae400-10": f"{_NETS}.gu2014:ae400_10",
    "gu2014/convnet": f"{_NETS}.gu2014:convnet",
    "shaham2015/convnet": f"{_NETS}.shaham2015:convnet",
    "shaham2015/convnet-bn": f"{_NETS}.shaham2015:convnet_bn",
    "shaham2015/vgg": f"{_NETS}.shaham2015:vgg",
    "mosca2018/dnn": f"{_NETS}.mosca2018:dnn",
    "mosca2018/cnn": f"{_NETS}.mosca2018:cnn",
    "mosca2018/all-cnn": f"{_NETS}.mosca2018:all_cnn",
    "malade2018/a": f"{_NETS}.malade2018:a",
    "malade2018/b": f"{_NETS}.malade2018:b",
    "malade2018/c": f"{_NETS}.malade2018:c",
    "malade2018/d": f"{_NETS}.malade2018:d",
    "sgr2018/mnist-cnn": f"{_NETS}.sgr2018:mnist_cnn",
    "sgr2018/cifar-cnn": f"{_NETS}.sgr2018:cifar_cnn",
    "wong2018/small": f"{_NETS}.wong2018:small",
}
"""Networks by name; ``torchvision/NAME`` reaches torchvision's classification networks too."""

DATASETS: dict[str, str] = {
    "digits": f"{_DATA}.digits:digits",
    "mnist": f"{_DATA}.torchvision_sets:mnist",
    "fashion-mnist": f"{_DATA}.torchvision_sets:fashion_mnist",
    "kmnist": f"{_DATA}.torchvision_sets:kmnist",
    "cifar10": f"{_DATA}.torchvision_sets:cifar10",
    "cifar100": f"{_DATA}.torchvision_sets:cifar100",
    "cifar10-small": f"{_DATA}.small_cifar:cifar10_small",
    "cifar10-zca": f"{_DATA}.whitened:cifar10_zca",
    "cifar100-zca": f"{_DATA}.whitened:cifar100_zca",
}
"""Data sets by name; ``npz:PATH``, ``folder:PATH`` and ``zca:NAME`` reach the user's own files and whitened images too."""
