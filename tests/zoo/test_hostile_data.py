"""Data sets that anyone may have made: one line that names the file, within bounded memory and time."""

from __future__ import annotations

import io
import os
import shutil
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from advbench.registry import registry

ARRAYS = {
    "x_train": np.random.default_rng(0).integers(0, 256, (8, 4, 4), dtype=np.uint8),
    "y_train": np.arange(8) % 2,
    "x_test": np.random.default_rng(1).integers(0, 256, (4, 4, 4), dtype=np.uint8),
    "y_test": np.arange(4) % 2,
}


def load(name):
    return registry.load_dataset(name, None)


def _npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def _claims(shape, descr="|u1"):
    header = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00v\x00" + header


def _npz(path, *, method=zipfile.ZIP_DEFLATED, **changes):
    with zipfile.ZipFile(path, "w", method, compresslevel=1) as archive:
        for name, array in (ARRAYS | changes).items():
            archive.writestr(f"{name}.npy", array if isinstance(array, bytes) else _npy(array))
    return f"npz:{path}"


def _lying(path):
    """The first member claims 2 TB in the archive's directory and in its header, and holds a few bytes."""
    _npz(path, x_train=_claims("(2000000000, 32, 32)"))
    content = path.read_bytes()
    size = struct.pack("<I", 0xFFFFFFF0)
    directory = content.index(b"PK\x01\x02")
    path.write_bytes(content[: directory + 24] + size + content[directory + 28 :])


SPOILT = {
    "terabytes": lambda path: _npz(path, x_train=_claims("(2000000000, 32, 32)")),
    "lying": _lying,
    "bomb": lambda path: _npz(path, x_train=_claims("(600000, 32, 32)") + bytes(600_000 * 1024)),
    "objects": lambda path: np.savez(path, **ARRAYS | {"y_test": np.array([print] * 4, dtype=object)}),
    "negative": lambda path: _npz(path, x_train=_claims("(-1, 32, 32)")),
    "records": lambda path: _npz(path, x_train=_claims("(4,)", "|V8") + bytes(32)),
    "lzma": lambda path: _npz(path, method=zipfile.ZIP_LZMA),
    "empty": lambda path: path.write_bytes(b""),
    "fifo": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
    "folder": Path.mkdir,
}

WITHIN = """
import resource, sys
from PIL import Image
from advbench.registry import registry
from advbench.zoo import image_folder, npz
Image.init()
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 300 * 2**20, used + 300 * 2**20))
for name in sys.argv[1:]:
    try:
        registry.load_dataset(name, None)
    except (OSError, ValueError) as error:
        print(error)
"""


def _within(*names):
    """What a process with 300 MiB to spare says of data sets, a line for each."""
    found = subprocess.run([sys.executable, "-c", WITHIN, *names], capture_output=True, text=True, check=False, timeout=200)
    assert found.stderr == ""
    return found.stdout.splitlines()


@given(place=st.integers(0, 10**6), what=st.binary(min_size=1, max_size=12), cut=st.booleans())
def test_any_archive_of_arrays_is_a_data_set_or_one_line(tmp_path_factory, place, what, cut):
    path = tmp_path_factory.mktemp("fuzz") / "a.npz"
    _npz(path)
    content = path.read_bytes()
    begin = place % len(content)
    path.write_bytes(content[:begin] + what + (b"" if cut else content[begin + len(what) :]))
    try:
        lines = [f"{len(load(f'npz:{path}').test)} images"]
    except ValueError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1


@given(
    x=st.sampled_from(["|u1", "<f4", "<f8", "<i8", "|b1", "<c8", "|S3", "<U2", "<M8[s]", ">f4", "<f2"]),
    y=st.sampled_from(["|u1", "<i8", "<u8", "<f4", "|S3", ">i2", "|b1"]),
    shape=st.lists(st.integers(0, 5), max_size=5),
    fill=st.binary(min_size=1, max_size=16),
)
def test_arrays_of_any_type_and_shape_are_a_data_set_or_one_line(tmp_path_factory, x, y, shape, fill):
    def array(descr, shape):
        count = int(np.prod(shape, dtype=np.int64)) * np.dtype(descr).itemsize
        return _claims(f"({''.join(f'{length},' for length in shape)})", descr) + (fill * (count + 1))[:count]

    path = tmp_path_factory.mktemp("fuzz") / "a.npz"
    _npz(path, x_train=array(x, shape), x_test=array(x, shape), y_train=array(y, shape[:1]), y_test=array(y, shape[:1]))
    try:
        lines = [f"{len(load(f'npz:{path}').test)} images"]
    except ValueError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1


# --- folders of images


@pytest.fixture
def images(tmp_path):
    """Two classes of two images of 5 x 4 pixels for training and for tests."""
    for part in ("train", "test"):
        for label, level in (("a", 40), ("b", 200)):
            folder = tmp_path / "images" / part / label
            folder.mkdir(parents=True)
            for number in range(2):
                Image.new("RGB", (5, 4), (level, number, 7)).save(folder / f"{number}.png")
    return tmp_path / "images"


def _chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width, height, packed):
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _truncated(path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    path.write_bytes(path.read_bytes()[:-30])


def _zeros(length):
    packer = zlib.compressobj(1)
    return b"".join([packer.compress(bytes(2**20)) for _ in range(length // 2**20)]) + packer.flush()


BOMBS = {
    "bomb": lambda path: path.write_bytes(_png(60_000, 60_000, _zeros(2**28))),
    "large": lambda path: path.write_bytes(_png(5_000, 5_000, _zeros(75 * 2**20))),
    "wide": lambda path: path.write_bytes(_png(2**31 - 1, 1, b"")),
    "text chunks": lambda path: path.write_bytes(
        _png(5, 4, zlib.compress(bytes(64))).replace(
            _chunk(b"IEND", b""), _chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(2**27), 1)) + _chunk(b"IEND", b"")
        )
    ),
}
BAD_IMAGES = {
    "truncated": _truncated,
    "empty": lambda path: path.write_bytes(b""),
    "text": lambda path: path.write_text("hello"),
    "postscript": lambda path: path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 5 4\n%%EndComments\n"),
    "fifo": os.mkfifo,
    "loop": lambda path: path.symlink_to(path),
    "nowhere": lambda path: path.symlink_to(path.with_name("none.png")),
}


@pytest.mark.parametrize("place", ["train/a/0.png", "test/b/1.png"])
def test_a_bad_image_is_named_in_one_line(images, place):
    path = images / place
    path.unlink()
    for name, spoil in BAD_IMAGES.items():
        spoil(path)
        (line,) = _refused(images)
        path.unlink()
        assert str(path) in line, name
        assert len(line) < 400


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_files_that_claim_too_much_are_one_line_within_bounded_memory(images, tmp_path):
    places = {}
    for name, spoil in SPOILT.items():
        places[f"npz:{tmp_path / name}.npz"] = tmp_path / f"{name}.npz"
        spoil(tmp_path / f"{name}.npz")
    for name, spoil in BOMBS.items():
        shutil.copytree(images, tmp_path / name)
        places[f"folder:{tmp_path / name}"] = tmp_path / name / "train" / "a" / "0.png"
        spoil(tmp_path / name / "train" / "a" / "0.png")
    for place, line in zip(places, _within(*places), strict=True):
        assert line.startswith("Expected a NumPy archive" if place.startswith("npz") else "Expected a whole image")
        assert str(places[place]) in line
        assert len(line) < 400


def _refused(images):
    with pytest.raises(ValueError, match="Expected a whole image") as caught:
        load(f"folder:{images}")
    return str(caught.value).splitlines()


@pytest.mark.parametrize("links", [{"loop": "."}, {"up": ".."}, {"x": "y", "y": "."}, {"one": "../b", "two": "../b"}])
def test_folders_that_lead_back_are_one_line(images, links):
    for name, target in links.items():
        (images / "train" / "a" / name).symlink_to(target)
    with pytest.raises(ValueError, match=r"\AExpected each folder once, got .*/train/a.*\Z"):
        load(f"folder:{images}")


def test_folders_and_images_behind_links_are_read(images, tmp_path):
    before = load(f"folder:{images}")
    (images / "train").rename(tmp_path / "elsewhere")
    (images / "train").symlink_to(tmp_path / "elsewhere")
    inner = tmp_path / "elsewhere" / "a"
    (inner / "0.png").rename(tmp_path / "moved.png")
    (inner / "0.png").symlink_to(tmp_path / "moved.png")
    (inner / "notes.txt").write_text("no image")
    os.mkfifo(inner / "pipe")
    assert load(f"folder:{images}").fingerprint == before.fingerprint


def test_images_lie_in_the_order_of_torchvision(images):
    from torchvision.datasets import ImageFolder

    for name, level in (("a/z/1.png", 1), ("a/b/9.PNG", 2), ("a/b0.jpeg", 3), ("a/b/c/4.bmp", 4), ("b/B.png", 5)):
        path = images / "train" / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (5, 4), (level, 9, 9)).save(path)
    expected = [(np.asarray(image), label) for image, label in ImageFolder(str(images / "train"))]
    data = load(f"folder:{images}")
    found = {(tuple(x.flatten().tolist()), int(y)) for x, y in zip(data.train.x, data.train.y, strict=True)}
    found |= {(tuple(x.flatten().tolist()), int(y)) for x, y in zip(data.validation.x, data.validation.y, strict=True)}
    wanted = {
        (tuple((pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)).flatten().tolist()), label)
        for pixels, label in expected
    }
    assert found == wanted

    from advbench.zoo import image_folder

    assert image_folder._listed(images / "train").files == [path for path, _ in ImageFolder(str(images / "train")).samples]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: content[:-100],
        lambda content: b"",
        lambda content: struct.pack(">I", 0xFF0803) + content[4:],
        lambda content: content[:4] + struct.pack(">I", 2**31) + content[8:],
        lambda content: content[:-4] + b"\xff" * 4,
    ],
)
def test_damaged_files_of_mnist_are_one_line(tmp_path, spoil):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(struct.pack(">IIII", 0x803, 20, 28, 28) + bytes(20 * 784))
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 20) + bytes(range(10)) * 2)
    labels = raw / "train-labels-idx1-ubyte"
    assert len(registry.load_dataset("mnist", tmp_path).test) == 20
    labels.write_bytes(spoil(labels.read_bytes()))
    with pytest.raises((OSError, ValueError), match=r"\AExpected mnist under .*\Z") as caught:
        registry.load_dataset("mnist", tmp_path)
    assert str(tmp_path) in str(caught.value)
