"""Files are written whole or not at all, and nothing is left of a writer that failed or was killed."""

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from advbench import files
from advbench.files import write_atomically


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_text_and_bytes_come_as_they_were_given(tmp_path):
    path = tmp_path / "new" / "folder" / "text"
    assert write_atomically(path, "first\nsecond µ\n") == path
    assert path.read_bytes() == b"first\nsecond \xc2\xb5\n"
    write_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert names(path.parent) == ["text"]


def test_a_missing_folder_is_made_only_where_it_may_be(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "gone" / "text", "text", make_folder=False)
    assert not (tmp_path / "gone").exists()


def test_a_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "usual").write_text("text")
    assert write_atomically(tmp_path / "ours", "text").stat().st_mode == (tmp_path / "usual").stat().st_mode


@pytest.mark.parametrize("failure", [OSError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, failure, moment):
    path = write_atomically(tmp_path / "text", "old")

    def fail(*_):
        raise failure

    monkeypatch.setattr(*{"fsync": (os, "fsync"), "replace": (Path, "replace")}[moment], fail)
    with pytest.raises(type(failure)):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert names(tmp_path) == ["text"]


def test_the_bytes_are_on_the_disk_before_the_name(tmp_path, monkeypatch):
    """The content is flushed, then renamed, then the folder is flushed."""
    seen = []
    flush, replace = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda file: (seen.append("folder" if is_folder(file) else "content"), flush(file))[1])
    monkeypatch.setattr(Path, "replace", lambda self, to: (seen.append("name"), replace(self, to))[1])
    write_atomically(tmp_path / "text", "new")
    assert seen == ["content", "name", "folder"]


def is_folder(descriptor: int) -> bool:
    return stat.S_ISDIR(os.fstat(descriptor).st_mode)


WRITER = """
import os, signal, sys
from pathlib import Path
from advbench.files import write_atomically
os.fsync = lambda file: os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]), "new")
"""


def test_a_killed_writer_leaves_the_old_file_and_its_remains_go_with_a_later_writing(tmp_path):
    path = write_atomically(tmp_path / "text", "old")
    writer = subprocess.run([sys.executable, "-c", WRITER, str(path)], check=False)
    assert writer.returncode == -signal.SIGKILL
    assert path.read_text() == "old"
    (remains,) = set(tmp_path.iterdir()) - {path}
    (tmp_path / ".text.mine").write_text("of the user")

    write_atomically(path, "newer")
    assert remains.exists(), "another writer may be at it"
    long_ago = time.time() - 2 * files.LEFTOVER_SECONDS
    os.utime(remains, (long_ago, long_ago))
    os.utime(tmp_path / ".text.mine", (long_ago, long_ago))
    write_atomically(path, "newest")
    assert path.read_text() == "newest"
    assert names(tmp_path) == [".text.mine", "text"]
