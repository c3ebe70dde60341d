"""Folders of large files in an object store, kept in the local cache: prepared data sets, and originals to prepare.

A file is copied as a whole when it is first needed, several at a time, and stays for later runs. The cache has a bound:
the sets that were not used for longest are removed, and a set that does not fit is refused before it is read.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import shutil
import threading
import weakref
from pathlib import Path

from alexnet_jax.errors import UsageError
from alexnet_jax.files import read_json, stores, write_whole
from alexnet_jax.files.copies import cache

AT_ONCE = 8  # files that are copied at the same time
USUAL_GB = 100
_LISTING = ".listing.json"


class CachedFolder:
    """A folder of an object store in the cache; its files are there after `get`.

    Args:
      address: of the folder.

    Raises:
      StoreError: if the store cannot be read.
    """

    def __init__(self, address: str):
        self.address = address
        self.infos = {name: info for name, info in stores.listing(address).items() if name}
        key = hashlib.sha256(f"{os.environ.get('AWS_ENDPOINT_URL', '')} {address}".encode()).hexdigest()[:16]
        self.folder = cache() / "data" / key / "/".join(address.partition("://")[2].split("/")[-3:])
        self._above = cache() / "data" / key
        self._arrived: dict[str, threading.Event] = {}
        self._errors: dict[str, Exception] = {}
        self._queue: queue.SimpleQueue = queue.SimpleQueue()
        self._lock = threading.Lock()
        if self.infos:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._used = os.open(self._above / ".used", os.O_CREAT | os.O_RDWR)
            weakref.finalize(self, os.close, self._used)
            fcntl.flock(self._used, fcntl.LOCK_SH)  # as long as this object, or the process, lives
            self._forget_changed()

    def _forget_changed(self):
        """Removes the files that are not those of the store any more."""
        stamps = {name: [info["size"], info.get("ETag") or info.get("etag") or ""] for name, info in self.infos.items()}
        path = self._above / _LISTING
        with (self._above / ".listing.lock").open("a") as lock:  # other processes may begin at the same time
            fcntl.flock(lock, fcntl.LOCK_EX)
            before = read_json(path, dict, f"Remove {path.parent}.") if path.exists() else {}
            for name in before.keys() | stamps.keys():
                if before.get(name) != stamps.get(name):
                    (self.folder / name).unlink(missing_ok=True)
            write_whole(path, json.dumps(stamps))

    def reserve(self, names: list[str]) -> None:
        """Makes room in the cache for some files. Raises UsageError if they are larger than its bound, or the disk."""
        needed = sum(self.infos[name]["size"] for name in names if not (self.folder / name).exists())
        whole, bound = sum(self.infos[name]["size"] for name in names), _bound()
        if whole > bound:
            raise UsageError(
                f"{self.address} needs {whole / 1e9:,.2f} GB in the cache {cache()}, but its bound is "
                f"{bound / 1e9:,.2f} GB. Set ALEXNET_CACHE_GB to a larger bound, or ALEXNET_CACHE_DIR to a folder of a "
                "larger disk."
            )
        others = sorted((path for path in self._above.parent.iterdir() if path != self._above), key=_last_use)
        used = {path: sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) for path in others}
        for path in others:
            free = shutil.disk_usage(self._above).free
            if sum(used.values()) + whole <= bound and needed < free:
                break
            if _remove_unused(path):
                del used[path]
        if needed >= (free := shutil.disk_usage(self._above).free):
            raise UsageError(
                f"{self.address} needs {needed / 1e9:,.2f} GB in the cache {cache()}, where {free / 1e9:,.2f} GB are "
                "free. Free some space, or set ALEXNET_CACHE_DIR to a folder of a larger disk."
            )

    def ask(self, names: list[str]) -> None:
        """Begins to copy some files, in this order, in the background."""
        with self._lock:
            new = [name for name in names if name not in self._arrived]
            begun = bool(self._arrived)
            self._arrived |= {name: threading.Event() for name in new}
        for name in new:
            self._queue.put(name)
        if not begun:
            for _ in range(AT_ONCE):  # as daemons, so that the program can end while they work
                threading.Thread(target=self._copy_files, daemon=True).start()

    def get(self, name: str) -> Path:
        """The path of a file, when it is here. Raises StoreError if it cannot be copied."""
        self.ask([name])
        self._arrived[name].wait()
        if error := self._errors.get(name):
            raise error
        return self.folder / name

    def get_all(self) -> Path:
        """The folder, when all its files are here."""
        self.reserve(list(self.infos))
        self.ask(list(self.infos))
        for name in self.infos:
            self.get(name)
        return self.folder

    def _copy_files(self):
        while True:
            name = self._queue.get()
            try:
                self._copy(name)
            except Exception as error:
                self._errors[name] = error
            self._arrived[name].set()

    def _copy(self, name):
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with (path.parent / f".{path.name}.lock").open("a") as lock:  # several processes of one host copy a file once
            fcntl.flock(lock, fcntl.LOCK_EX)
            if path.exists():
                return
            partial = path.with_name(f".{path.name}.partial")
            address = stores.join(self.address, name)
            stores.attempt(address, lambda system: system.get_file(address, str(partial)))
            if partial.stat().st_size != self.infos[name]["size"]:
                raise stores.StoreError(f"{address} changed while it was copied. Start again.")
            if changed := self.infos[name].get("LastModified") or self.infos[name].get("mtime"):
                os.utime(partial, (changed.timestamp(),) * 2)  # `prepare` compares the times of its originals
            partial.replace(path)


def _bound():
    given = os.environ.get("ALEXNET_CACHE_GB", "")
    try:
        return 1e9 * float(given or USUAL_GB)
    except ValueError as error:
        raise UsageError(f"ALEXNET_CACHE_GB is {given}; accepted is a number of GB, such as 200.") from error


def _last_use(folder):
    return (folder / _LISTING).stat().st_mtime if (folder / _LISTING).exists() else 0.0


def _remove_unused(folder):
    """Removes a set that no process uses; returns whether it did."""
    with contextlib.suppress(OSError), (folder / ".used").open("a") as used:
        fcntl.flock(used, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder, ignore_errors=True)
        return True
    return False


def put_folder(folder: Path, address: str, last: str) -> None:
    """Puts all files of a folder to an address; the file with the name `last` when all others are there."""
    names = [path.relative_to(folder).as_posix() for path in sorted(folder.rglob("*")) if path.is_file()]
    for part in ([name for name in names if name != last], [last]):
        ours, theirs = [str(folder / name) for name in part], [stores.join(address, name) for name in part]
        stores.attempt(address, lambda system, o=ours, t=theirs: system.put(o, t))
