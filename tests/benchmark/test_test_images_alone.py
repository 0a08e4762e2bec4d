"""Trained models on test images alone, and models that return more than a tensor."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

import advbench
from advbench.registry.registry import load_dataset
from advbench.user_models.handed import Handed
from advbench.user_models.outputs import tensor_in
from advbench.user_models.target import plan_target, run_target

N = 12
NET = """
import torch
from torch import nn

def make():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
"""


def images() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (N, 4, 4), dtype=np.uint8), np.arange(N) % 3


def test_an_archive_with_test_images_alone_is_enough_to_evaluate_and_not_to_train(cache, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x, y = images()
    np.savez("mine.npz", x_test=x, y_test=y)
    (tmp_path / "net.py").write_text(NET)
    data = load_dataset("npz:mine.npz")
    assert (len(data.train), len(data.validation), len(data.test), data.n_classes) == (0, 0, N, 3)
    torch.testing.assert_close(data.test.x, torch.from_numpy(x)[:, None].float() / 255)
    said: list[str] = []
    plan = plan_target(
        "net.py:make", dataset="npz:mine.npz", attack="fgm", epsilon=0.1, curve=False, say=said.append, device="cpu", jobs=1
    )
    result = run_target(plan)
    namespace: dict = {}
    exec(NET, namespace)  # noqa: S102
    clean = (namespace["make"]()(data.test.x).argmax(dim=1) == data.test.y).double().mean()
    assert result.clean.value == pytest.approx(float(clean))
    with pytest.raises(ValueError, match=r"Expected training images for none, got none in npz:mine\.npz"):
        advbench.run(dataset="npz:mine.npz", attack="fgm", defense="none", device="cpu", out="out")
    np.savez("half.npz", x_test=x, y_test=y, x_train=x)
    with pytest.raises(ValueError, match="it lacks y_train"):
        load_dataset("npz:half.npz")


@pytest.mark.parametrize("part", ["test/", "val/", ""])
def test_a_folder_of_images_is_enough(tmp_path, part):
    x, y = images()
    for row, (pixels, label) in enumerate(zip(x, y, strict=True)):
        place = tmp_path / f"{part}class{label}"
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / f"{row}.png")
    data = load_dataset(f"folder:{tmp_path}")
    assert (len(data.train), len(data.test), data.shape, data.n_classes) == (0, N, (1, 4, 4), 3)
    came = {(image.numpy().tobytes(), int(label)) for image, label in zip(data.test.x, data.test.y, strict=True)}
    wanted = {((pixels[None] / np.float32(255)).tobytes(), int(label)) for pixels, label in zip(x, y, strict=True)}
    assert came == wanted


class Returning(nn.Module):
    """A linear model that hands its logits out in an object."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form, self.head = form, nn.Linear(4, 3)

    def forward(self, x: Tensor) -> object:
        logits = self.head(x.flatten(1))
        return {
            "logits": lambda: SimpleNamespace(logits=logits, hidden=logits[:, :2], loss=None),
            "dictionary": lambda: {"prediction": logits, "hidden": logits[None]},
            "named": lambda: {"logits": logits, "hidden": logits[:, :2]},
            "tuple": lambda: (logits, None, logits.mean()),
            "probabilities": lambda: [logits.softmax(dim=1)],
        }[self.form]()


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("logits", "The model returns SimpleNamespace: its `logits` are taken"),
        ("dictionary", "The model returns dict: 'prediction', its one tensor (n, classes), is taken"),
        ("named", "The model returns dict: its `logits` are taken"),
        ("tuple", "The model returns tuple: number 0, its one tensor (n, classes), is taken"),
        ("probabilities", "The model returns list: number 0, its one tensor (n, classes), is taken"),
    ],
)
def test_the_one_tensor_of_the_right_shape_is_the_answer(cache, form, said):
    torch.manual_seed(0)
    model = Returning(form)
    x, y = torch.rand(N, 1, 2, 2), torch.arange(N) % 3
    found = advbench.attack("fgm", model, x, y, epsilon=0.1, batch=N)
    assert said in found.notes
    clean = model.head(x.flatten(1)).argmax(dim=1) == y
    assert torch.equal(found.clean_correct, clean)
    assert torch.equal(found.success, clean & (model.head(found.x_adv.flatten(1)).argmax(dim=1) != y))


def test_an_answer_in_which_several_tensors_fit_is_refused():
    two = (torch.zeros(5, 3), torch.zeros(5, 3))
    assert tensor_in(two, 5) == (two, "")
    assert tensor_in({"a": torch.zeros(4, 3)}, 5)[1] == ""
    assert tensor_in((torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)), 5)[1].startswith("The model returns tuple")
    model = nn.Module()
    model.forward = lambda x: two
    assert Handed(model)(torch.zeros(5, 1, 2, 2)) is two
