"""Models as people hand them in: all are one linear classifier of four classes, wrapped in a way that once went wrong.

A factory of this file is a target of ``advbench evaluate``; the harness knows nothing of it. `WEIGHT`, `BIAS` and `CENTRE`
say what the classifier is, so that its robust accuracy is known in closed form.
"""

import os
import sys
import warnings

import torch
from torch import nn

warnings.simplefilter("ignore")

CLASSES, SHAPE = 4, (1, 4, 4)
_GENERATOR = torch.Generator().manual_seed(7)
WEIGHT = torch.randn(CLASSES, 16, generator=_GENERATOR)
BIAS = 0.1 * torch.randn(CLASSES, generator=_GENERATOR)
CENTRE = 0.5


class Plain(nn.Module):
    """The twin that behaves."""

    def __init__(self):
        super().__init__()
        self.weight, self.bias = nn.Parameter(WEIGHT.clone()), nn.Parameter(BIAS.clone())

    def forward(self, x):
        return torch.addmm(self.bias, x.flatten(1) - CENTRE, self.weight.t())


class Behind(Plain):
    """The classifier with something done to its logits."""

    def __init__(self, then):
        super().__init__()
        self.then = then

    def forward(self, x):
        return self.then(super().forward(x))


def plain():
    return Plain()


# --- what it is given


class Writes(Plain):
    """Normalises its input in place."""

    def forward(self, x):
        x.sub_(CENTRE).mul_(2)
        return torch.addmm(self.bias, x.flatten(1), self.weight.t() / 2)


class WritesData(Plain):
    """Writes past autograd, which leaves no trace."""

    def forward(self, x):
        x.data.sub_(CENTRE)
        logits = torch.addmm(self.bias, x.flatten(1), self.weight.t())
        x.data.zero_()
        return logits


def writes_in_place():
    return Writes()


def writes_into_data():
    return WritesData()


# --- probabilities


def softmax():
    return Behind(lambda z: (20 * z).softmax(dim=1))


def softmax_layer():
    return nn.Sequential(Behind(lambda z: 20 * z), nn.Softmax(dim=1))


def softmax_copied():
    return Behind(lambda z: z.softmax(dim=1).clone())


def mean_of_softmaxes():
    return Behind(lambda z: torch.stack((z.softmax(dim=1), z.softmax(dim=1))).mean(dim=0))


def half_softmax():
    return Behind(lambda z: z.softmax(dim=1).half())


def log_softmax():
    return Behind(lambda z: (20 * z).log_softmax(dim=1))


def log_of_softmax():
    return Behind(lambda z: (60 * z).softmax(dim=1).log())


# --- precision


def float64_logits():
    return Behind(lambda z: z.double() + 1e6)


def float64_model():
    return Plain().double()


def half_logits():
    return Behind(lambda z: z.half())


def bfloat16_model():
    return Rounded()


class Rounded(nn.Module):
    """Parameters of bfloat16, which float32 images do not fit."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, CLASSES).bfloat16()
        with torch.no_grad():
            self.linear.weight.copy_(WEIGHT)
            self.linear.bias.copy_(BIAS)

    def forward(self, x):
        return self.linear(x.flatten(1) - CENTRE)


# --- modes


class EvalReturnsNothing(Plain):
    def eval(self):
        super().eval()

    def train(self, mode=True):
        super().train(mode)


class EvalRaises(Plain):
    def train(self, mode=True):
        raise NotImplementedError("Calling train() is not supported")


def eval_returns_nothing():
    return EvalReturnsNothing()


def eval_raises():
    return EvalRaises()


class Layers(nn.Module):
    """For compilers, which want plain layers."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, CLASSES)
        with torch.no_grad():
            self.linear.weight.copy_(WEIGHT)
            self.linear.bias.copy_(BIAS)

    def forward(self, x):
        return self.linear(x.flatten(1) - 0.5)


def scripted():
    return torch.jit.script(Layers().eval())


def frozen_script():
    return torch.jit.freeze(torch.jit.script(Layers().eval()))


def traced():
    return torch.jit.trace(Layers().eval(), torch.rand(2, *SHAPE))


def exported():
    shapes = ({0: torch.export.Dim("batch")},)
    return torch.export.export(Layers().eval(), (torch.rand(4, *SHAPE),), dynamic_shapes=shapes).module()


# --- inference mode


def built_in_inference_mode():
    with torch.inference_mode():
        return Plain()


class Constant(Plain):
    """A tensor that is neither parameter nor buffer, made in inference mode."""

    def __init__(self):
        super().__init__()
        with torch.inference_mode():
            self.scale = torch.full((16,), 2.0)

    def forward(self, x):
        return torch.addmm(self.bias, (x.flatten(1) - CENTRE) * self.scale, self.weight.t() / self.scale.unsqueeze(1))


def constant_of_inference_mode():
    return Constant()


class Keeping(Plain):
    """Keeps a tensor that it makes when it is first asked, as position embeddings are kept."""

    def __init__(self):
        super().__init__()
        self.kept = None

    def forward(self, x):
        if self.kept is None:
            self.kept = torch.full((16,), 2.0)
        return torch.addmm(self.bias, (x.flatten(1) - CENTRE) * self.kept, self.weight.t() / self.kept.unsqueeze(1))


def keeps_a_tensor():
    return Keeping()


class InInferenceMode(Plain):
    @torch.inference_mode()
    def forward(self, x):
        return super().forward(x)


def called_in_inference_mode():
    return InInferenceMode()


# --- without gradients


class InNumpy(Plain):
    def forward(self, x):
        return torch.from_numpy((x.numpy().reshape(len(x), -1) - CENTRE) @ WEIGHT.numpy().T + BIAS.numpy())


def numpy_inside():
    return InNumpy()


def quantised():
    from torch.ao import quantization

    torch.backends.quantized.engine = "fbgemm" if "fbgemm" in torch.backends.quantized.supported_engines else "qnnpack"
    model = nn.Sequential(quantization.QuantStub(), nn.Flatten(), nn.Linear(16, CLASSES), quantization.DeQuantStub()).eval()
    with torch.no_grad():
        model[2].weight.copy_(WEIGHT)
        model[2].bias.copy_(BIAS - CENTRE * WEIGHT.sum(dim=1))
    model.qconfig = quantization.get_default_qconfig(torch.backends.quantized.engine)
    quantization.prepare(model, inplace=True)
    model(torch.rand(64, *SHAPE, generator=torch.Generator().manual_seed(0)))
    return quantization.convert(model)


# --- what cannot work, and says why


class Raising(Plain):
    def forward(self, x):
        try:
            return {}["head"]
        except KeyError as error:
            raise RuntimeError("the model\nis not complete") from error


def raises():
    return Raising()


class Leaving(Plain):
    def forward(self, x):
        sys.exit(0)


def leaves():
    return Leaving()


def factory_leaves():
    sys.exit(0)


class Misfit(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(5, CLASSES)

    def forward(self, x):
        return self.linear(x.flatten(1))


def script_raises():
    return torch.jit.script(Misfit())


def returns_a_tuple():
    return Behind(lambda z: (z, z))


# --- what is said


class Random(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(16, CLASSES)

    def forward(self, x):
        return self.linear(x.flatten(1))


def random_weights():
    return Random()


class Bytes(Plain):
    """Expects pixels in 0..255, and is sure of one class for any others."""

    def forward(self, x):
        return super().forward(x / 255) + 8 * (x.flatten(1).amax(dim=1, keepdim=True) < 2) * torch.eye(CLASSES)[0]


def expects_bytes():
    return Bytes()


def by_environment():
    """Another classifier by an environment variable, with the same weights."""
    return Spread(float(os.environ.get("ADVBENCH_TEST_FACTOR", "1")))


class Spread(Plain):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x):
        return torch.addmm(self.bias, (x.flatten(1) - CENTRE) * self.factor, self.weight.t())
