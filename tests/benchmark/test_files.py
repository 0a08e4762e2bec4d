"""Files are written whole or not at all, and nothing is left of a writer that failed or was killed."""

import os
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from advbench import files
from advbench.files import temporary_folder, write_atomically


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
from advbench.files import temporary_folder, write_atomically
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


LONG_AGO = time.time() - 2 * files.LEFTOVER_SECONDS


def test_what_killed_writers_left_of_any_file_of_the_folder_is_removed(tmp_path):
    """Files of a store are named by keys, and none is written twice."""
    for number in range(3):
        subprocess.run([sys.executable, "-c", WRITER, str(tmp_path / f"key{number}.npz")], check=False)
    left = sorted(tmp_path.iterdir())
    assert len(left) == 3
    others = [
        tmp_path / name for name in (".key.npz.tmp", "key.0123456789abcdef0123456789abcdef.tmp", ".tmp", ".of.the.user.tmp")
    ]
    for path in others:
        path.touch()
    for path in (*left[1:], *others):
        os.utime(path, (LONG_AGO, LONG_AGO))
    write_atomically(tmp_path / "another", "text")
    assert set(tmp_path.iterdir()) == {left[0], tmp_path / "another", *others}


def test_the_file_of_a_living_writer_stays_however_old_it_is(tmp_path, monkeypatch):
    reached, go = threading.Event(), threading.Event()
    flush = os.fsync

    def slow(file):
        if threading.current_thread().name == "slow":
            reached.set()
            assert go.wait(60)
        flush(file)

    monkeypatch.setattr(os, "fsync", slow)
    writer = threading.Thread(target=write_atomically, args=(tmp_path / "slow", "text"), name="slow")
    writer.start()
    assert reached.wait(60)
    (unfinished,) = tmp_path.iterdir()
    os.utime(unfinished, (LONG_AGO, LONG_AGO))
    write_atomically(tmp_path / "another", "text")
    assert unfinished.exists()
    go.set()
    writer.join()
    assert names(tmp_path) == ["another", "slow"]


HOLDER = """
import os, signal, sys
from advbench.files import temporary_folder
with temporary_folder() as folder:
    (folder / "inside").mkdir()
    print(folder, flush=True)
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_temporary_folder_goes_and_that_of_a_killed_process_with_the_next_one(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    mine = [tmp_path / name for name in ("advbench-out", "advbench-temporary", "advbench-temporary-mine")]
    for path in mine:
        path.mkdir()
        os.utime(path, (LONG_AGO, LONG_AGO))
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    folder = Path(holder.stdout.readline().strip())
    os.utime(folder, (LONG_AGO, LONG_AGO))
    with temporary_folder() as own:
        assert folder.is_dir(), "its process lives"
        assert own.is_dir()
    assert not own.exists()
    holder.communicate()
    assert holder.returncode == -signal.SIGKILL
    assert folder.is_dir()
    with temporary_folder():
        assert not folder.exists()
    assert set(tmp_path.iterdir()) == set(mine)
