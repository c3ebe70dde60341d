"""A folder in an object store, and the local copy in which a program works on it.

Everything that reads or writes a workdir needs a local folder: Orbax, TensorBoard, and the writer of metrics.jsonl. So
a workdir in an object store is copied to a local cache, and what changes there is put back: at each checkpoint, and
at the end. One put replaces a file as a whole, as a rename does on a disk. Of a checkpoint, the file WHOLE is put last
and removed first; without it the checkpoint does not count.
"""

import contextlib
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Literal

from alexnet_jax.errors import UsageError
from alexnet_jax.files import alone, local_folder, stores
from alexnet_jax.files.lease import Lease

WHOLE = "_CHECKPOINT_METADATA"  # of Orbax, in each of its checkpoints
ANOTHER_DISK = "set ALEXNET_CACHE_DIR to a folder on another disk"  # advice, in messages
_CHECKPOINT = re.compile(r"(?:.*/)?checkpoints/\d+(?=/)")
_ASIDE = re.compile(r"(?:.*/)?damaged/[^/]+(?=/)")
_NOT_READ = re.compile(r"(.*/)?(events\.out\.tfevents[^/]*|(plugins|damaged|report)/.*|\.[^/]*)")
_NOT_PUT = re.compile(r"(.*/)?(\.[^/]*|[^/]*\.partial|[^/]*orbax-checkpoint-tmp[^/]*(/.*)?)")
_open: dict[Path, "Copy"] = {}  # by local folder


def cache() -> Path:
    """The folder for everything that is kept here of object stores.

    ALEXNET_CACHE_DIR names it; without, it is alexnet_jax/cloud in the user's cache.
    """
    if given := os.environ.get("ALEXNET_CACHE_DIR"):
        return local_folder(given, "ALEXNET_CACHE_DIR").resolve()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").resolve() / "alexnet_jax/cloud"
    except RuntimeError as error:
        raise UsageError("this user has no home folder for a cache. Set ALEXNET_CACHE_DIR to a folder.") from error


def copy_of(folder: Path) -> "Copy | None":
    """The open copy that has a local folder in it, if there is one."""
    folder = Path(folder).absolute()
    return next((_open[above] for above in (folder, *folder.parents) if above in _open), None)


def named(text: str) -> str:
    """A text in which open copies are called by their addresses."""
    for folder, copy in _open.items():
        text = text.replace(str(folder), copy.address)
    return text


def disk_of(folder: Path) -> tuple[str, str]:
    """Where a local folder takes its space, and what to do to use another disk, for messages."""
    if copy := copy_of(folder):
        return f"{cache()} (the local copy of {copy.address})", ANOTHER_DISK
    return str(folder), "give another --workdir"


@contextlib.contextmanager
def opened(
    path: str | Path, name: str, use: Literal["read", "add", "run"] = "read", *, lease: Lease | None = None
) -> Iterator[Path]:
    """The local folder for a path that a user gave: a copy, for the length of a `with` block, if it is an address.

    Args:
      path: a folder, or an address gs://... or s3://..., also of a single file.
      name: of the flag or argument, for messages.
      use: "read"; "add" also puts new and changed files at the end; "run" also removes checkpoints that are gone.
      lease: checked before anything is put.

    Raises:
      UsageError: as files.local_folder; or if the store cannot be read or written.
    """
    if not stores.is_address(path):
        yield local_folder(path, name)
        return
    address = stores.check_address(str(path), name)
    with _own_folder() as above:
        copy = Copy(address, above / address.rpartition("/")[2], use, lease)
        copy.folder.mkdir()
        _open[copy.folder] = copy
        try:
            copy.get()
            with _put_at_end(copy):
                yield copy.place
        finally:
            copy.close()
            del _open[copy.folder]


@contextlib.contextmanager
def _put_at_end(copy):
    try:
        yield
        copy.put()
    except BaseException as error:
        if not isinstance(error, stores.StoreError):
            with contextlib.suppress(UsageError):
                copy.put()
        if isinstance(error, UsageError):
            raise type(error)(named(str(error)) + copy.keep()) from error
        if kept := copy.keep():
            print(kept.strip(), file=sys.stderr, flush=True)
        raise


@contextlib.contextmanager
def _own_folder():
    """An empty folder in the cache, for this process alone. Folders of processes that were killed are removed."""
    copies = cache() / "copies"
    copies.mkdir(parents=True, exist_ok=True)
    for folder in copies.iterdir():
        with contextlib.suppress(UsageError, OSError):
            if folder.stat().st_mtime < time.time() - 60:  # a newer one may not have its lock yet
                with alone(folder, "process") as locked:
                    if locked:  # where there are no locks, its process may live
                        shutil.rmtree(folder, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=copies))
    try:
        with alone(folder, "process"):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Copy:
    """A folder in an object store, and its local copy."""

    def __init__(self, address: str, folder: Path, use: str, lease: Lease | None):
        self.address, self.folder = address, folder
        self.place = folder  # a file, if the address is that of a file
        self._use, self._lease = use, lease
        self._stamps: dict[str, tuple] = {}  # of the local files that are the same in the store
        self._checkpoints: set[str] = set()  # in the store
        self._pool, self._putting = ThreadPoolExecutor(1), None

    def get(self) -> None:
        """Gets what the store has and the local copy lacks: not the events of TensorBoard, nor broken checkpoints."""
        there = stores.listing(self.address)
        if list(there) == [""]:  # the address of a file
            self.place = self.folder.parent / "file" / self.folder.name
            self._get({self.address: self.place})
            return
        self._checkpoints = {found[0] for name in there if (found := _CHECKPOINT.match(name))}
        whole = {checkpoint for checkpoint in self._checkpoints if f"{checkpoint}/{WHOLE}" in there}
        names = [name for name in there if not _NOT_READ.fullmatch(name)]
        names = [name for name in names if not (found := _CHECKPOINT.match(name)) or found[0] in whole]
        for name in there:
            if found := _ASIDE.match(name):  # empty, so that the name is not taken again
                (self.folder / found[0]).mkdir(parents=True, exist_ok=True)
        self._get({stores.join(self.address, name): self.folder / name for name in names if name not in self._stamps})
        self._stamps |= {name: _stamp(self.folder / name) for name in names}

    def _get(self, files):
        for path in files.values():
            path.parent.mkdir(parents=True, exist_ok=True)
        if files:
            ours = [str(path) for path in files.values()]
            stores.attempt(self.address, lambda system: system.get(list(files), ours))

    def put(self) -> None:
        """Puts every file that changed, and for use "run" removes the checkpoints that are gone here.

        Raises:
          StoreError: if this is not possible; it names the last checkpoint in the store.
          UsageError: if another run has taken the lock.
        """
        self.settle()
        if self._use != "read":
            self._put()

    def put_later(self) -> None:
        """As put, in the background. Errors come from the next call of settle, put or put_later."""
        self.settle()
        if self._use != "read":
            self._putting = self._pool.submit(self._put)

    def settle(self) -> None:
        """Waits for what put_later began, and raises its error."""
        putting: Future | None = self._putting
        self._putting = None
        if putting is not None:
            putting.result()

    def _put(self):
        try:
            if self._lease is not None:
                self._lease.check()
            self._put_changed()
        except stores.StoreError as error:
            steps = [int(name.split("/")[-2]) for name in self._stamps if name.endswith(f"/{WHOLE}")]
            last = f"The last checkpoint there is that of step {max(steps)}" if steps else "No checkpoint is there yet"
            raise stores.StoreError(f"{error} {last}; the same command resumes the run.") from error

    def _put_changed(self):
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        stamps = {name: _stamp(path) for name, path in files.items() if not _NOT_PUT.fullmatch(name)}
        changed = [name for name, stamp in stamps.items() if self._stamps.get(name) != stamp]
        marks = [name for name in changed if name.endswith(f"/{WHOLE}")]
        many = [name for name in changed if "/" in name and name not in marks]
        # In the order in which they were written: a run writes config.json last, when the others are there.
        single = sorted((name for name in changed if "/" not in name), key=lambda name: stamps[name][1])
        for names in ([many] if many else []) + [[name] for name in (*single, *marks)]:
            ours, theirs = [str(files[name]) for name in names], [stores.join(self.address, name) for name in names]
            stores.attempt(self.address, lambda system, o=ours, t=theirs: system.put(o, t))
            self._stamps |= {name: stamps[name] for name in names}
        here = {name.removesuffix(f"/{WHOLE}") for name in stamps if name.endswith(f"/{WHOLE}")}
        if self._use == "run":
            for checkpoint in sorted(self._checkpoints - here):
                self._remove(checkpoint)
        self._checkpoints |= {found[0] for name in marks if (found := _CHECKPOINT.match(name))}

    def _remove(self, checkpoint):
        address = stores.join(self.address, checkpoint)
        for what in (stores.join(address, WHOLE), address):  # first the file that says that it is whole
            with contextlib.suppress(FileNotFoundError):
                stores.attempt(address, lambda system, what=what: system.rm(what, recursive=what == address))
        self._checkpoints.discard(checkpoint)
        self._stamps = {name: stamp for name, stamp in self._stamps.items() if not name.startswith(f"{checkpoint}/")}

    def keep(self) -> str:
        """Moves what could not be put out of the copy, which is removed; returns a sentence that says where it is."""
        if self._use == "read" or not self._unput():
            return ""
        kept = Path(tempfile.mkdtemp(dir=cache(), prefix="kept-")) / self.folder.name
        shutil.move(self.folder, kept)
        return f" What is not in the store is kept in {kept}."

    def _unput(self):
        files = {path.relative_to(self.folder).as_posix(): path for path in self.folder.rglob("*") if path.is_file()}
        return any(self._stamps.get(n) != _stamp(path) for n, path in files.items() if not _NOT_PUT.fullmatch(n))

    def close(self) -> None:
        """Ends the thread of put_later."""
        self._pool.shutdown()


def _stamp(path):
    status = path.stat()
    return status.st_size, status.st_mtime_ns
