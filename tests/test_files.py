"""Files are whole or as they were before."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet_jax.errors import UsageError
from alexnet_jax.files import alone, local, local_folder, sync, write_whole

ROOT = Path(__file__).parent.parent


@pytest.mark.parametrize(("content", "read"), [("wörter\n", "wörter\n".encode()), (b"\x00\xff", b"\x00\xff")])
def test_what_is_written_is_there_and_nothing_else(content, read, tmp_path):
    path = tmp_path / "file"
    path.write_text("before")
    write_whole(path, content)
    assert path.read_bytes() == read
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    path, write_bytes = tmp_path / "file", Path.write_bytes

    def half_of_it(self, content):
        write_bytes(self, content[: len(content) // 2])
        raise OSError("no space left on device")

    write_whole(path, "before")
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_bytes", half_of_it)
        with pytest.raises(OSError, match="no space left"):
            write_whole(path, "afterwards")
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]
    write_whole(path, "afterwards")
    assert path.read_text() == "afterwards"


def test_a_file_has_its_name_only_when_it_is_on_the_disk(tmp_path, monkeypatch):
    there = []
    monkeypatch.setattr(os, "fsync", lambda _: there.append([(p.name, p.read_text()) for p in tmp_path.iterdir()]))
    write_whole(tmp_path / "file", "all")
    assert there == [[("file.partial", "all")]]


def test_a_folder_that_cannot_be_synced_is_left_and_a_file_is_not(tmp_path, monkeypatch):
    def fails(_):
        raise OSError("not supported")

    (tmp_path / "file").write_text("")
    monkeypatch.setattr(os, "fsync", fails)
    sync(tmp_path)
    with pytest.raises(OSError, match="not supported"):
        sync(tmp_path / "file")


@pytest.mark.parametrize("path", ["gs://bucket/run", "s3://b", "hdfs://name:9000/x", "gs:/bucket"])
def test_an_address_is_not_taken_for_a_folder(path):
    for function in (local, local_folder):
        with pytest.raises(UsageError, match=r"--workdir is .*; accepted is a path of this machine's file systems"):
            function(path, "--workdir")


@pytest.mark.parametrize("path", ["/a/b", "a:b/c", "run", "C:/x", Path("x")])
def test_a_path_of_this_machine_is_accepted(path):
    assert local(path, "--workdir") == Path(path)


def test_a_file_is_no_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    for name in ("file", "file/run"):
        with pytest.raises(UsageError, match=f"--workdir is .*/{name}, but {tmp_path}/file is a file. Give a folder"):
            local_folder(tmp_path / name, "--workdir")


def test_without_a_home_folder_a_path_from_home_is_refused(monkeypatch):
    def fails(self):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "expanduser", fails)
    with pytest.raises(UsageError, match="--workdir is ~/x, but this user has no home folder"):
        local("~/x", "--workdir")


def test_a_lock_names_who_has_it_and_ends_with_its_process(tmp_path):
    program = """
import sys, time
from pathlib import Path
from alexnet_jax.files import alone
with alone(Path(sys.argv[1]), "run"):
    print("locked", flush=True)
    time.sleep(100)
"""
    holder = subprocess.Popen([sys.executable, "-c", program, tmp_path], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert holder.stdout.readline() == "locked\n"
    for _ in range(2):  # the second time the words are still there
        with (
            pytest.raises(
                UsageError, match=f"Another run is using {tmp_path}: process {holder.pid} on {platform.node()}"
            ),
            alone(tmp_path, "run"),
        ):
            pass
    holder.kill()
    holder.communicate()
    with alone(tmp_path, "run"):
        pass
