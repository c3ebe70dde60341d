"""Files are whole or as they were before."""

import os
from pathlib import Path

import pytest

from alexnet_jax.files import sync, write_whole


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
