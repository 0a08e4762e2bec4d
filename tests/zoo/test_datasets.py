from __future__ import annotations

from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from advbench.registry.registry import load_dataset as load
from advbench.zoo import DATASETS
from advbench.zoo.data import DataSet, Split, fingerprint
from advbench.zoo.datasets import default_budget
from advbench.zoo.digits import _upscale

DIGITS_FINGERPRINT = "de944961c2f4fb4bfcd4aab1646b4857307920df749773881e90ed1948bed656"


def check_contract(data: DataSet) -> None:
    """What every data set promises."""
    for split in (data.train, data.validation, data.test):
        assert split.x.dtype == torch.float32
        assert split.x.is_contiguous()
        assert split.x.shape[1:] == data.shape
        assert 0 <= split.x.min() <= split.x.max() <= 1
        assert split.y.dtype == torch.int64
        assert split.y.shape == (len(split.x),)
        assert 0 <= split.y.min() <= split.y.max() < data.n_classes
        assert torch.equal(split.index, torch.arange(len(split)))
    assert set(data.radii) == {"linf", "l2", "l1"}


def test_digits_keep_their_promises_and_their_bits() -> None:
    data = load("digits")
    check_contract(data)
    assert data.name == "digits"
    assert data.shape == (1, 28, 28)
    assert (len(data.train), len(data.validation), len(data.test)) == (1295, 143, 359)
    assert data.fingerprint == DIGITS_FINGERPRINT
    assert load("digits").fingerprint == data.fingerprint


def test_the_splits_of_digits_are_stratified_disjoint_and_complete() -> None:
    from sklearn.datasets import load_digits

    data = load("digits")
    parts = (data.train, data.validation, data.test)
    counts = torch.stack([part.y.bincount(minlength=10) for part in parts])
    assert (counts[2] - 0.2 * counts.sum(0)).abs().max() <= 0.5
    assert (counts[1] - 0.08 * counts.sum(0)).abs().max() <= 1
    bunch = load_digits()
    scaled = torch.from_numpy(_upscale(bunch.images.astype(np.int64), 28)).flatten(1)
    expected = sorted((image.numpy().tobytes(), int(label)) for image, label in zip(scaled, bunch.target, strict=True))
    images = torch.cat([part.x for part in parts]).flatten(1)
    found = sorted(
        (image.numpy().tobytes(), int(label))
        for image, label in zip(images, torch.cat([part.y for part in parts]), strict=True)
    )
    assert found == expected


@given(st.integers(1, 9), st.integers(1, 30))
def test_upscaling_is_bilinear_interpolation(size: int, target: int) -> None:
    images = torch.randint(0, 17, (2, size, size), generator=torch.Generator().manual_seed(size))
    reference = torch.nn.functional.interpolate(
        images.double().unsqueeze(1) / 16, size=(target, target), mode="bilinear", align_corners=False
    )
    found = torch.from_numpy(_upscale(images.numpy(), target)).unsqueeze(1)
    torch.testing.assert_close(found, reference.float(), rtol=0, atol=1e-6)


def test_a_fingerprint_sees_every_pixel_label_and_split() -> None:
    split = Split.of(torch.rand(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))
    pixel, label = split.x.clone(), split.y.clone()
    pixel[3, 0, 1, 1] += 0.01
    label[2] = 1
    variants = [
        (split, split),
        (Split.of(pixel, split.y), split),
        (split, Split.of(split.x, label)),
        (Split.of(split.x.view(4, 1, 4, 1), split.y), split),
        (split, split.first(3)),
    ]
    assert len({fingerprint(*variant) for variant in variants}) == len(variants)


def test_a_fingerprint_ignores_the_memory_layout() -> None:
    x, y = torch.rand(4, 3, 2, 2), torch.zeros(4, dtype=torch.int64)
    assert fingerprint(Split.of(x, y)) == fingerprint(Split.of(x.to(memory_format=torch.channels_last), y))


def test_real_mnist_loads_whole(data_dir: Path) -> None:
    if not (data_dir / "MNIST" / "raw").is_dir():
        pytest.skip(f"no MNIST in {data_dir}")
    data = load("mnist", data_dir)
    check_contract(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (54000, 6000, 10000)
    assert data.test.y[:10].tolist() == [7, 2, 1, 0, 4, 1, 4, 9, 5, 9]
    assert data.radii["linf"] == 0.3
    whole = torch.cat([data.train.x, data.validation.x])
    assert whole.double().mean().item() == pytest.approx(0.1307, abs=1e-4)
    assert torch.cat([data.train.y, data.validation.y]).bincount().tolist() == [
        5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949,
    ]  # fmt: skip


def test_the_real_cifar_subset_loads_from_its_archive(data_dir: Path) -> None:
    path = data_dir / "cifar10-small.npz"
    if not path.is_file():
        pytest.skip(f"no {path.name} in {data_dir}")
    data = load(f"npz:{path}")
    check_contract(data)
    assert data.shape == (3, 32, 32)
    assert (len(data.train), len(data.validation), len(data.test)) == (13500, 1500, 5000)
    assert data.radii["linf"] == 8 / 255


class FakeCifar:
    """Stands for torchvision's class: bytes (n, side, side, 3) and a list of labels."""

    side = 32

    def __init__(self, root: Path, *, train: bool, download: bool) -> None:
        n = 40 if train else 12
        self.data = np.random.default_rng(train).integers(0, 256, (n, self.side, self.side, 3), dtype=np.uint8)
        self.targets = [i % 10 for i in range(n)]


def test_cifar_becomes_channels_first_with_a_tenth_for_validation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    data = load("cifar10")
    check_contract(data)
    assert (len(data.train), len(data.validation), len(data.test)) == (36, 4, 12)
    expected = torch.from_numpy(FakeCifar(Path(), train=False, download=False).data[5, 3, 7]) / 255
    torch.testing.assert_close(data.test.x[5, :, 3, 7], expected)
    assert data.test.y.tolist() == [i % 10 for i in range(12)]


def test_whitened_cifar_is_whitened_by_its_training_images_and_has_no_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """The covariance C of the training images becomes C (C + 0.1 I)^-1; every split goes through the same map."""
    monkeypatch.setattr(FakeCifar, "side", 6)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", FakeCifar)
    plain, data = load("cifar10"), load("cifar10-zca")
    assert (data.name, data.box, plain.box) == ("cifar10-zca", None, (0.0, 1.0))
    assert data.radii == {"linf": 0.1}
    assert data.fingerprint not in (plain.fingerprint, "")
    assert load("zca:cifar10").fingerprint == data.fingerprint
    x = plain.train.x.double().flatten(1)
    mean, covariance = x.mean(dim=0), torch.cov(x.T, correction=0)
    values, vectors = torch.linalg.eigh(covariance)
    matrix = vectors @ torch.diag((values.clamp_min(0) + 0.1).rsqrt()) @ vectors.T
    for name in ("train", "validation", "test"):
        before, after = getattr(plain, name), getattr(data, name)
        expected = ((before.x.double().flatten(1) - mean) @ matrix).view(before.x.shape)
        torch.testing.assert_close(after.x, expected.float(), atol=1e-5, rtol=1e-5)
        assert torch.equal(before.y, after.y)
        assert torch.equal(before.index, after.index)
    assert data.train.x.min() < 0


def test_any_data_set_can_be_whitened() -> None:
    data = load("zca:digits")
    assert (data.name, data.shape, data.box) == ("zca:digits", (1, 28, 28), None)
    assert data.train.x.mean(dim=0).abs().max() < 1e-4


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist", "cifar10", "cifar100"])
def test_a_folder_without_the_files_is_one_clear_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for chosen in (True, False):
        monkeypatch.setenv("ADVBENCH_DATA", str(tmp_path))
        with pytest.raises(FileNotFoundError, match=f"^Expected {name} under {tmp_path} ") as caught:
            load(name, tmp_path if chosen else None)
        assert "\n" not in str(caught.value)


def test_a_failed_download_is_one_clear_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object, **__: object) -> None:
        raise URLError("no route\nto host")

    monkeypatch.delenv("ADVBENCH_DATA", raising=False)
    monkeypatch.setenv("ADVBENCH_CACHE", str(tmp_path))
    monkeypatch.setattr(torchvision.datasets, "KMNIST", offline)
    with pytest.raises(FileNotFoundError, match=f"^Expected to download kmnist to {tmp_path}/data, got URLError") as caught:
        load("kmnist")
    assert "\n" not in str(caught.value)
    assert "ADVBENCH_DATA" in str(caught.value)


def test_every_data_set_has_a_budget() -> None:
    assert all(default_budget(name).epochs > 0 for name in [*DATASETS, "npz:mine.npz"])
    assert default_budget("zca:mnist") == default_budget("mnist") != default_budget("cifar10")


def _arrays(x: np.ndarray, x_test: np.ndarray, labels: int = 2) -> dict[str, np.ndarray]:
    return {
        "x_train": x,
        "y_train": np.arange(len(x)) % labels,
        "x_test": x_test,
        "y_test": np.arange(len(x_test)) % labels,
    }


def _write(path: Path, **arrays: np.ndarray) -> str:
    np.savez(path, **arrays)
    return f"npz:{path}"


@given(
    channels=st.sampled_from([1, 3]),
    size=st.tuples(st.integers(4, 7), st.integers(4, 7)),
    layout=st.sampled_from(["nhwc", "nchw", "nhw"]),
    as_bytes=st.booleans(),
    column=st.booleans(),
)
def test_npz_layouts_all_give_the_same_images(
    tmp_path_factory: pytest.TempPathFactory,
    channels: int,
    size: tuple[int, int],
    layout: str,
    as_bytes: bool,
    column: bool,
) -> None:
    channels = 1 if layout == "nhw" else channels
    pixels = np.random.default_rng(0).integers(0, 256, (20, channels, *size), dtype=np.uint8)
    stored = {"nchw": pixels, "nhwc": pixels.transpose(0, 2, 3, 1), "nhw": pixels[:, 0]}[layout]
    stored = stored if as_bytes else (stored / 255).astype(np.float64)
    arrays = _arrays(stored[:14], stored[14:], 3)
    if column:
        arrays |= {key: arrays[key][:, None].astype(np.uint8) for key in ("y_train", "y_test")}
    data = load(_write(tmp_path_factory.mktemp("npz") / "a.npz", **arrays))
    check_contract(data)
    assert data.shape == (channels, *size)
    assert data.n_classes == 3
    torch.testing.assert_close(data.test.x, torch.from_numpy(pixels[14:]).float() / 255)
    assert data.test.y.tolist() == [0, 1, 2, 0, 1, 2]
    together = torch.cat([data.train.x, data.validation.x]).flatten(1).sum(1).sort().values
    torch.testing.assert_close(together, torch.from_numpy(pixels[:14]).float().flatten(1).sum(1).sort().values / 255)
    assert data.radii["linf"] == (0.3 if channels == 1 else 8 / 255)


GREY = np.zeros((6, 4, 4), np.uint8)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": GREY.astype(np.float32) + 255},
            r"x_train as uint8 or as floats in \[0, 1\], got float32 in \[255, 255\]",
        ),
        ({"x_test": np.full((6, 4, 4), np.nan)}, r"x_test as uint8 or as floats in \[0, 1\], got float64 in \[nan, nan\]"),
        ({"x_train": GREY.astype(np.int32)}, "got int32"),
        ({"x_train": np.zeros((6, 4, 4, 2), np.uint8)}, r"with c = 1 or 3, got \(6, 4, 4, 2\)"),
        ({"x_train": np.zeros((6, 16), np.uint8)}, r"got \(6, 16\)"),
        ({"x_test": np.zeros((6, 5, 4), np.uint8)}, r"images of one shape, got \(1, 4, 4\) and \(1, 5, 4\)"),
        ({"x_test": np.zeros((0, 4, 4), np.uint8), "y_test": np.zeros(0, int)}, "images in x_test, got shape"),
        ({"y_train": np.zeros((6, 2), int)}, r"y_train as \(6,\) or \(6, 1\), one label per image, got \(6, 2\)"),
        ({"y_train": np.arange(5) % 2}, r"y_train as \(6,\)"),
        ({"y_train": np.linspace(0, 1, 6)}, "y_train as whole numbers from 0, got float64"),
        ({"y_train": np.arange(6) % 2 - 1}, "y_train as whole numbers from 0, got -1"),
        ({"y_train": np.array([0, 2, 0, 2, 0, 2])}, "every label from 0 to 2, got none of 1"),
        ({"y_train": np.zeros(6, int), "y_test": np.zeros(6, int)}, "at least 2 classes"),
        ({"y_test": np.full(6, 2)}, r"labels of y_train \(0 to 1\), got 2"),
        ({"y_test": np.array([object()] * 6)}, "objects, which hold code"),
    ],
)
def test_npz_contents_of_another_form_are_one_clear_line(
    tmp_path: Path, changes: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        load(_write(tmp_path / "a.npz", **(_arrays(GREY, GREY) | changes)))
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("Expected ")


def test_npz_files_that_are_none_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"got no file at .*missing\.npz"):
        load(f"npz:{tmp_path}/missing.npz")
    with pytest.raises(ValueError, match="lacks x_test, y_test"):
        load(_write(tmp_path / "part.npz", x_train=GREY))
    (tmp_path / "text.npz").write_text("hello")
    with pytest.raises(ValueError, match="Expected a NumPy archive"):
        load(f"npz:{tmp_path}/text.npz")
    whole = (tmp_path / "part.npz").read_bytes()
    (tmp_path / "cut.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="Expected a NumPy archive"):
        load(f"npz:{tmp_path}/cut.npz")
    np.save(tmp_path / "single.npy", GREY)
    with pytest.raises(ValueError, match="it is a single array"):
        load(f"npz:{tmp_path}/single.npy")


def _paint(root: Path, part: str, label: str, count: int, *, grey: bool = False, size: tuple[int, int] = (5, 4)) -> None:
    """Images whose red level is ten times the class's letter, so that labels can be checked."""
    folder = root / part / label
    folder.mkdir(parents=True)
    for number in range(count):
        level = 10 * (ord(label) - ord("a"))
        Image.new("RGB", size, (level, level if grey else 200, level if grey else number)).save(folder / f"{number}.png")


@pytest.mark.parametrize("part", ["test", "val"])
def test_a_folder_gives_images_with_the_labels_of_their_folders(tmp_path: Path, part: str) -> None:
    for label in "abc":
        _paint(tmp_path, "train", label, 7)
        _paint(tmp_path, part, label, 4)
    data = load(f"folder:{tmp_path}")
    check_contract(data)
    assert data.shape == (3, 4, 5)
    assert data.n_classes == 3
    assert (len(data.train), len(data.validation), len(data.test)) == (19, 2, 12)
    for split in (data.train, data.validation, data.test):
        assert torch.equal((split.x[:, 0, 0, 0] * 25.5).round().long(), split.y)
    assert data.test.y.diff().ne(0).sum() > 2
    assert load(f"folder:{tmp_path}").fingerprint == data.fingerprint


def test_grey_folders_become_one_channel(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for label in "ab":
            _paint(tmp_path, part, label, 3, grey=True)
    assert load(f"folder:{tmp_path}").shape == (1, 4, 5)


def test_folders_of_another_form_are_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"folders train and test .*no folder there"):
        load(f"folder:{tmp_path}/none")
    _paint(tmp_path, "train", "a", 2)
    with pytest.raises(FileNotFoundError, match=r"folders train and test .*got train"):
        load(f"folder:{tmp_path}")
    _paint(tmp_path, "test", "a", 2)
    with pytest.raises(ValueError, match="at least 2 classes"):
        load(f"folder:{tmp_path}")
    _paint(tmp_path, "train", "b", 2)
    with pytest.raises(ValueError, match=r"the same classes in train and test .* got b in one only"):
        load(f"folder:{tmp_path}")
    _paint(tmp_path, "test", "b", 2, size=(9, 9))
    with pytest.raises(ValueError, match=r"to be 5x4, got 9x9 in .*0\.png: resize them"):
        load(f"folder:{tmp_path}")


def test_the_small_cifar_is_the_archive_in_the_data_folder_or_the_first_images(tmp_path, monkeypatch):
    from advbench.zoo import small_cifar

    images, labels = np.arange(20 * 32 * 32 * 3, dtype=np.int64).reshape(20, 32, 32, 3) % 255, np.arange(20) % 10
    np.savez(
        tmp_path / "cifar10-small.npz",
        x_train=images.astype(np.uint8),
        y_train=labels,
        x_test=images.astype(np.uint8),
        y_test=labels,
    )
    found = small_cifar.cifar10_small(tmp_path)
    assert (found.name, found.shape, len(found.test)) == ("cifar10-small", (3, 32, 32), 20)
    assert torch.equal(found.test.x[1], torch.from_numpy(images[1]).permute(2, 0, 1).float() / 255)
    monkeypatch.setattr(small_cifar, "_TEST", 7)
    monkeypatch.setattr(small_cifar, "_TRAIN", 10)
    monkeypatch.setattr(small_cifar.torchvision_sets, "cifar10", lambda _: found)
    first = small_cifar.cifar10_small(tmp_path / "elsewhere")
    assert (first.name, len(first.train) + len(first.validation), len(first.test)) == ("cifar10-small", 10, 7)
    assert torch.equal(first.test.x, found.test.x[:7])
