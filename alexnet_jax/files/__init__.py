"""Paths that a user gives, and files that are written completely or not at all, even if the machine stops."""

import contextlib
import errno
import json
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from alexnet_jax.errors import UsageError

NO_LOCKS = errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP
"""The errors of file systems that know no locks."""


def local(path: str | Path, name: str) -> Path:
    """Returns a path that a user gave, with ~ replaced.

    Args:
      path: of a file or folder.
      name: of the flag or argument, for messages.

    Raises:
      UsageError: if it is an address such as gs://bucket/run; or if it begins with ~ and there is no home folder.
    """
    if address := re.match(r"[A-Za-z][\w+.-]+:/", str(path)):
        raise UsageError(
            f"{name} is {path}; accepted is a path of this machine's file systems, not {address[0]}/. Only workdirs, "
            "weights to read and prepared data can be at gs:// or s3:// addresses. Copy the files to a disk, or mount "
            "that storage as a folder (rclone mount), and give that path."
        )
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise UsageError(
            f"{name} is {path}, but this user has no home folder. Give an absolute path, or set HOME."
        ) from error


def local_folder(path: str | Path, name: str) -> Path:
    """As local, for a folder that may not exist yet. Also raises UsageError if it is a file."""
    folder = local(path, name)
    for part in (folder, *folder.parents):
        try:
            is_file = part.exists() and not part.is_dir()
        except OSError as error:  # such as a folder that this user may not look into
            raise UsageError(f"{name} is {path}, but {part}: {error.strerror}. Give another folder.") from error
        if is_file:
            raise UsageError(
                f"{name} is {path}, but {part} is a file. Give a folder, or a name that does not exist yet."
            )
    return folder


def read_json(path: Path, kind: type, advice: str):
    """Reads a JSON file.

    Args:
      path: exists.
      kind: of the value at its top, such as dict.
      advice: a sentence that says what to do if the file is damaged.

    Raises:
      UsageError: if it is not JSON, or has a value of another kind.
    """
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path} is damaged: it is not JSON ({str(error)[:100]}). {advice}") from error
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}). {advice}") from error
    if not isinstance(value, kind):
        raise UsageError(
            f"{path} is damaged: it holds {str(value)[:50]!r} instead of a {getattr(kind, '__name__', kind)}. {advice}"
        )
    return value


def read_metrics(path: Path) -> list[tuple[str, dict[str, float]]]:
    """The lines of metrics.jsonl, as text and as numbers by name, "step" among them; none if there is no such file.

    Other lines are left out with a warning; only the last may be incomplete, after a stop.
    """
    lines = path.read_bytes().decode(errors="replace").splitlines() if path.exists() else []
    good, bad = [], []
    for number, line in enumerate(lines, 1):
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if isinstance(value, dict) and "step" in value and all(type(v) in (int, float) for v in value.values()):
            good.append((line, value))
        elif number < len(lines):
            bad.append(number)
    if bad:
        print(f"WARNING: {path} has {len(bad):,} damaged lines, which are left out; the first is line {bad[0]}.")
    return good


@contextlib.contextmanager
def alone(folder: Path, what: str) -> Iterator[bool]:
    """Locks a folder for a `with` block. The lock ends with this process, however it ends.

    It yields whether there is a lock: on file systems that know none, it prints a warning and goes on.

    Args:
      folder: exists; it gets a file `.lock`, which names the host and the process.
      what: what uses the folder, for the message.

    Raises:
      UsageError: if another process, also on another host that shares the folder, has locked it.
    """
    import fcntl  # not at the top, because Windows, where the library works too, does not have it

    with open(folder / ".lock", "a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            locked = True
        except BlockingIOError as error:
            lock.seek(0)
            raise UsageError(
                f"Another {what} is using {folder}: {lock.read().strip() or 'a process'}. Wait until it ends, stop it, "
                "or give another folder."
            ) from error
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            locked = False
            print(f"WARNING: {folder} cannot be locked ({error.strerror}). Do not start a second {what} there.")
        lock.truncate(0)
        lock.write(f"process {os.getpid()} on {platform.node()}\n")
        lock.flush()
        yield locked


def write_whole(path: Path, content: str | bytes) -> None:
    """Writes a file under a temporary name, then renames it. An older file of that name stays unchanged until then."""
    with written_whole(path) as partial:
        partial.write_bytes(content.encode() if isinstance(content, str) else content)


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """As write_whole, for a file that is written in parts: gives the path of the temporary file."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        sync(partial)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def sync(path: Path) -> None:
    """Returns when a file's contents, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():  # some file systems cannot do this for a folder
            raise
    finally:
        os.close(descriptor)
