"""The lock of a folder in an object store: a file that is put only if it is not there yet, and renewed by its owner."""

import contextlib
import json
import os
import platform
import threading
import time
import uuid

from alexnet_jax.errors import UsageError
from alexnet_jax.files import stores

NAME = ".lock"
RENEWED = 30  # seconds between two renewals
LEASE = 180  # seconds without a renewal after which others may take the lock


class Lease:
    """A context manager that holds the lock of a folder.

    Args:
      address: of the folder.
      what: what uses the folder, for messages.

    Raises:
      UsageError: if another process holds the lock. The lock of a process that was killed can be taken after LEASE
        seconds, and at once if that process ran on this host.
    """

    def __init__(self, address: str, what: str):
        self._file, self._address, self._what = stores.join(address, NAME), address, what
        self.owner = {"id": uuid.uuid4().hex, "process": os.getpid(), "host": platform.node(), "pids": _pids()}
        self._ended = threading.Event()

    def __enter__(self):
        taken = False
        for _ in range(3):
            there = self._read()
            if there is not None:
                if not self._is_dead(there):
                    raise self._used_by(there)
                with contextlib.suppress(FileNotFoundError):
                    stores.attempt(self._file, lambda system: system.rm_file(self._file))
                taken = True
            if self._create():
                break
        else:
            raise self._used_by(self._read() or {})
        if taken:
            time.sleep(2)  # if two processes take the lock of a dead one, the last to write has it
        self.check()
        threading.Thread(target=self._renew, daemon=True).start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        with contextlib.suppress(UsageError, FileNotFoundError):
            if (self._read() or {}).get("id") == self.owner["id"]:
                stores.attempt(self._file, lambda system: system.rm_file(self._file), pauses=(1, 2))

    def check(self) -> None:
        """Raises UsageError if another process has taken the lock, as it may after LEASE seconds without a network."""
        there = self._read()
        if there is None:
            self._create()
            there = self._read()
        if (there or {}).get("id") != self.owner["id"]:
            raise UsageError(
                f"Another {self._what} has taken over {self._address}: {_who(there or {})}. This one could not renew "
                f"its lock for {LEASE} seconds, and stops without writing there."
            )

    def _content(self):
        # A content that changes, so that every store counts a renewal as a change.
        return json.dumps(self.owner | {"renewed": time.time()}).encode()

    def _create(self):
        """Puts the lock if it is not there; returns whether this process then has it."""
        content = self._content()
        try:
            stores.attempt(self._file, lambda system: system.pipe_file(self._file, content, mode="create"))
        except FileExistsError:  # also if an earlier attempt succeeded and its answer was lost
            return (self._read() or {}).get("id") == self.owner["id"]
        return True

    def _read(self):
        try:
            return json.loads(stores.attempt(self._file, lambda system: system.cat_file(self._file)))
        except FileNotFoundError:
            return None
        except ValueError as error:
            if isinstance(error, UsageError):
                raise
            return {}

    def _renew(self):
        while not self._ended.wait(RENEWED):
            with contextlib.suppress(UsageError, OSError):
                if (self._read() or {}).get("id") == self.owner["id"] and not self._ended.is_set():
                    content = self._content()
                    stores.attempt(self._file, lambda system, c=content: system.pipe_file(self._file, c), pauses=())

    def _is_dead(self, owner):
        """Whether the owner was a process of this host that has ended, or has not renewed its lock for long."""
        if owner.get("host") == self.owner["host"] and owner.get("pids") == self.owner["pids"]:
            try:
                os.kill(owner["process"], 0)
            except ProcessLookupError:
                return True
            except (OSError, KeyError, TypeError):
                pass
        clock = f"{self._file}-{uuid.uuid4().hex}"  # both times are by the store's clock
        try:
            stores.attempt(clock, lambda system: system.pipe_file(clock, b"now"))
            age = stores.modified(clock) - stores.modified(self._file)
        except FileNotFoundError:  # the lock has gone
            return False
        finally:
            with contextlib.suppress(UsageError, FileNotFoundError):
                stores.attempt(clock, lambda system: system.rm_file(clock))
        return age.total_seconds() > LEASE

    def _used_by(self, owner):
        return UsageError(
            f"Another {self._what} is using {self._address}: {_who(owner)}. Wait until it ends, stop it, or give "
            f"another folder. If it was killed, its lock can be taken {LEASE} seconds after that."
        )


def _pids():
    """What tells this system's process numbers from those of a container with the same host name."""
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""


def _who(owner):
    return f"process {owner.get('process', '?')} on {owner.get('host', '?')}"
