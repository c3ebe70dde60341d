"""Several processes that run one program, on one host or many: connected, kept in agreement, stopped together.

JAX's own runtime connects them (jax.distributed). This module has what a run needs in addition. With
one process, its functions send nothing and wait for nobody.
"""

import contextlib
import faulthandler
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
import traceback
import uuid
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax import files
from alexnet_jax.errors import UsageError
from alexnet_jax.files import copies, stores
from alexnet_jax.files.lease import Lease

_MEMINFO = Path("/proc/meminfo")  # unlike os.sysconf, it counts file caches as free
# Where Linux says how much memory a container may have.
_LIMITS = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes")


class AgreedError(UsageError):
    """A UsageError that every process raises; each knows that the others raise it too."""


@contextlib.contextmanager
def session(coordinator: str = "", num_processes: int = 0, process_id: int = -1, timeout: int = 100):
    """Connects this process with the other processes of its run, if there are any, for the length of a `with` block.

    JAX finds Slurm, TPU pods, Kubernetes and Open MPI by itself; they need no arguments.

    Args:
      coordinator: HOST:PORT of process 0, the same for all processes; "" lets JAX find it.
      num_processes: number of processes; 0 lets JAX find it; 1 means no others, even if JAX would find some.
      process_id: number of this process, starting from 0; -1 lets JAX find it.
      timeout: seconds without a sign of life after which a process counts as lost.

    Raises:
      UsageError: if only some of the first three arguments are given, or process 0 cannot be reached.
        If process 0 waits for another process without success, JAX ends the program.
    """
    _connect(coordinator, num_processes, process_id, timeout)
    try:
        yield
    except (AgreedError, FloatingPointError):
        raise  # all processes raise these, because all have the same numbers
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        # Only this process failed. A normal end would wait for the others, and they would wait for this one.
        _die(error)


def keep_compiled() -> None:
    """Makes JAX keep the programs that it compiles, so that the next run of the same network starts at once.

    They are kept in the folder JAX_COMPILATION_CACHE_DIR (if it is empty, nowhere). If it is not set, they are kept in
    the user's cache, in one folder for each host: a program compiled for one CPU may not run on another. Call this
    before anything is compiled.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "alexnet_jax" / platform.node()
        cache.mkdir(parents=True, exist_ok=True)
        writable = os.access(cache, os.W_OK)
    except (OSError, RuntimeError):  # RuntimeError: this user has no home
        writable = False
    if writable:
        jax.config.update("jax_compilation_cache_dir", str(cache))
    else:
        print("Compiled programs are not kept: no home folder can be written to. JAX_COMPILATION_CACHE_DIR names one.")


def convolve_with_eigen() -> None:
    """Makes XLA use Eigen for convolutions on a CPU: the small networks then train 1.4 to 1.6 times as fast.

    jaxlib 0.10 to 0.12 use YNNPACK unless a flag says otherwise. Call this before any device is used. If XLA_FLAGS
    already set that flag, they stay as they are. If JAX is installed for an accelerator, this does nothing: the
    accelerator's own XLA reads XLA_FLAGS too, and ends the program if it does not know a flag.
    """
    flag = "--xla_cpu_experimental_ynn_fusion_type"
    known = (0, 10) <= jax.version.__version_info__[:2] <= (0, 12)
    accelerated = importlib.metadata.entry_points(group="jax_plugins") or importlib.util.find_spec("libtpu")
    if known and not accelerated and flag not in os.environ.get("XLA_FLAGS", ""):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}=individual_dot".strip()


def _connect(coordinator, num_processes, process_id, timeout):
    given = {"--coordinator": coordinator != "", "--num_processes": num_processes > 0, "--process_id": process_id >= 0}
    if num_processes == 1 or jax.distributed.is_initialized():
        return
    if any(given.values()):
        missing = ", ".join(name for name, there in given.items() if not there)
        if missing:
            raise UsageError(
                f"{missing} is missing. Give --coordinator=HOST:PORT, --num_processes=N and --process_id=I (0 to N-1) "
                "together, or none of them where JAX finds the processes by itself (Slurm, TPU, Kubernetes, Open MPI)."
            )
        if process_id >= num_processes:
            raise UsageError(
                f"--process_id is {process_id}; accepted are 0 to {num_processes - 1}, "
                f"as --num_processes is {num_processes}."
            )
        if not re.fullmatch(r".+:\d+", coordinator):
            raise UsageError(f"--coordinator is {coordinator}; accepted is HOST:PORT of process 0, e.g. node1:12345.")
        print(f"Process {process_id} of {num_processes} waits for the others, for {timeout} s at most.", flush=True)
        if process_id:
            _wait_for(coordinator, timeout)
    if _initialize((coordinator, num_processes, process_id) if any(given.values()) else (), timeout):
        # When processes are lost, JAX prints a message and aborts; the stacks of all threads would hide the message.
        faulthandler.disable()
    elif jax.distributed.is_initialized() and threading.current_thread() is threading.main_thread():
        # JAX now handles SIGTERM as a message to several processes; a single process would never notice it.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _initialize(arguments, timeout):
    """Connects to the other processes; returns whether there are any."""
    try:
        jax.distributed.initialize(*arguments, initialization_timeout=timeout, heartbeat_timeout_seconds=timeout)
    except (ValueError, RuntimeError) as error:
        if arguments:
            raise UsageError(
                f"the processes cannot be connected at {arguments[0]} ({error}). Check that the port is free."
            ) from error
        # JAX found no sign of other processes, or has been used before (in a notebook).
        if "coordinator_address" in str(error) or "must be called before" in str(error):
            return False
        raise UsageError(
            f"JAX finds other processes but cannot connect to them ({error}). Give --coordinator, --num_processes and "
            "--process_id, or --num_processes=1 if there is only one."
        ) from error
    return jax.process_count() > 1


def _wait_for(coordinator, timeout):
    """Waits until process 0 listens; JAX would abort without saying what to do."""
    host, _, port = coordinator.rpartition(":")
    until = time.monotonic() + timeout
    while True:
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=timeout).close()
            return
        except (OSError, OverflowError) as error:
            if time.monotonic() > until:
                raise UsageError(
                    f"--coordinator is {coordinator}, where process 0 did not answer within {timeout} s ({error}). "
                    "Give HOST:PORT of process 0, start process 0 too, and check that no firewall blocks the port."
                ) from error
            time.sleep(0.5)


def _die(error):
    """Ends this process at once. The other processes then lose the connection and end too."""
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UsageError):
        words = f"error: {error}\nThis error is from {who}; it stops, and the others stop too."
    else:
        traceback.print_exception(error)
        words = (
            f"error: {who} stopped: {repr(error).splitlines()[0]}\n"
            "If this is about a connection or a peer, another process was lost first: read its output."
        )
    resume = "The saved checkpoints are kept; start all processes again with the same command, and they resume."
    print(words, resume, file=sys.stderr, flush=True)
    os._exit(1)


def free_memory() -> int | None:
    """Bytes of this host's memory that are free, or hold file caches; None if the system does not say."""
    found = re.search(r"MemAvailable: *(\d+) kB", _MEMINFO.read_text() if _MEMINFO.is_file() else "")
    limits = [path.read_text().strip() for path in _LIMITS if path.is_file()]
    known = [int(found[1]) * 1024] if found else []
    return min(known + [int(limit) for limit in limits if limit.isdigit()], default=None)


def cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def say(line: str) -> None:
    """Prints a line once: only process 0 prints it."""
    if jax.process_index() == 0:
        print(copies.named(line), flush=True)


def gather(text: str) -> list[str]:
    """The texts of all processes, in the order of the processes; each process waits for all others."""
    own = np.frombuffer(text.encode(), np.uint8)
    longest = multihost_utils.process_allgather(np.int32(len(own))).max()
    padded = multihost_utils.process_allgather(np.pad(own, (0, longest - len(own))))
    return [row.tobytes().rstrip(b"\0").decode() for row in padded]


def together(work):
    """Calls work() on every process. If one of them raises UsageError, which the user can correct, all raise an error.

    Args:
      work: function without arguments that does not communicate with other processes.

    Returns:
      The result of work on this process.
    """
    result, error = None, None
    try:
        result = work()
    except UsageError as own:
        error = own
    for process, message in enumerate(gather(str(error) if error else "")):
        if message:
            raise AgreedError(str(error) if error else f"process {process} stopped: {message}") from error
    return result


def in_turn(work):
    """As together, but process 0 works first, so that the others find what it has prepared."""
    first = together(lambda: work() if jax.process_index() == 0 else None)
    return together(lambda: first if jax.process_index() == 0 else work())


def agree(values: dict[str, object]) -> None:
    """Raises UsageError on all processes unless all have the same values (JSON's types); it names one that differs."""
    first, *others = map(json.loads, gather(json.dumps(values, default=repr)))
    for process, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise AgreedError(
                    f"the processes disagree: {name} is {first.get(name)!r} for process 0 and {other.get(name)!r} "
                    f"for process {process}. Start all of them with the same files and arguments."
                )


@contextlib.contextmanager
def workdir(path, use="read", what="run"):
    """The local folder for a workdir, which may be an address in an object store, for the length of a `with` block.

    Of an address each process has a copy, and process 0 puts back what changed.

    Args:
      path: a folder, or an address gs://... or s3://...
      use: as in copies.opened. With "run", process 0 first checks its rights, and holds the lock in the store.
      what: what uses the workdir, for messages.

    Raises:
      UsageError: on all processes, if the folder or the address cannot be used, or another process has the lock.
    """
    if not stores.is_address(path):
        yield files.local_folder(path, "--workdir")
        return
    address = stores.check_address(str(path), "--workdir")
    agree({"--workdir": address})
    first = jax.process_index() == 0
    with contextlib.ExitStack() as stack:

        def lock():
            if use == "run" and first:
                stores.check_rights(address)
                return stack.enter_context(Lease(address, what))

        lease = together(lock)
        copy = copies.opened(address, "--workdir", use if first else "read", lease=lease)
        yield together(lambda: stack.enter_context(copy))


def exchange(folder: Path) -> None:
    """Puts what process 0 wrote to its copy of a workdir, and gets it for the others; nothing for a shared folder."""
    if copy := copies.copy_of(folder):
        together(lambda: None if jax.process_index() else copy.put())
        together(lambda: copy.get() if jax.process_index() else None)


def share(folder: Path) -> None:
    """Creates a folder, and raises UsageError on all processes unless they all see the same one, or have copies."""
    shared = jax.process_count() > 1 and not copies.copy_of(folder)
    mark = folder / gather(f".shared-{uuid.uuid4().hex}")[0]

    def leave_mark():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if jax.process_index() == 0 and shared:
                mark.touch()
        except OSError as error:
            raise UsageError(
                f"{folder} cannot be written to ({error.strerror}). Give another --workdir, or change its permissions."
            ) from error

    def find_mark():
        if shared and not mark.exists():
            raise UsageError(
                f"{folder} is not the same folder here and on process 0. Give a --workdir on storage that all hosts "
                "share: all of them write checkpoints to it."
            )

    together(leave_mark)
    try:
        together(find_mark)
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)


@contextlib.contextmanager
def alone(workdir: Path):
    """Locks a workdir, which exists, for this run for the length of a `with` block; process 0 holds the lock.

    Raises:
      UsageError: on all processes, if another run has locked it.
    """
    with contextlib.ExitStack() as stack:

        def lock():
            if jax.process_index() == 0:
                stack.enter_context(files.alone(workdir, "run"))

        together(lock)
        yield


class Sigterm:
    """A context manager: after SIGTERM to one process, all processes stop at the same place.

    If there is only one process, Ctrl-C does the same; a second Ctrl-C ends the program in the usual way. A Sigterm
    inside another one informs the outer one as well. Python handles signals only in the main thread; in another
    thread it says so and does nothing.
    """

    _asked = 0  # calls of `check` in this process; JAX counts in each process too

    def __init__(self):
        self.came = False  # whether the signal came, and all processes know it
        self._received, self._before = [], {}

    def __enter__(self):
        # With several processes, JAX handles the signal and chooses the call of `check` at which all of them stop.
        if threading.current_thread() is not threading.main_thread():
            say("This is not the main thread: SIGTERM and Ctrl-C will not save the state before the program ends.")
        elif jax.process_count() == 1:
            listened = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            # A program that a shell starts in the background ignores Ctrl-C, which is meant for other programs.
            self._before = {number: before for number, before in listened.items() if before is not signal.SIG_IGN}
            for number in self._before:
                signal.signal(number, self._receive)
        return self

    def __exit__(self, *_):
        for number, before in self._before.items():
            signal.signal(number, before)
        for number in self._received:
            if outer := self._outer(number):
                outer._take(number)

    def _receive(self, number, _):
        self._take(number)
        if number == signal.SIGINT:
            os.write(2, b"\nStopping at the next step; press Ctrl-C again to stop at once.\n")

    def _take(self, number):
        self._received.append(number)
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _outer(self, number):
        """The Sigterm around this one, or None."""
        listener = getattr(self._before.get(number), "__self__", None)
        return listener if isinstance(listener, Sigterm) else None

    def interrupted(self) -> bool:
        """Whether Ctrl-C came, and no outer Sigterm handles it too."""
        return signal.SIGINT in self._received and self._outer(signal.SIGINT) is None

    def check(self) -> bool:
        """Whether to stop now. Every process must call this equally often: once a step, and once an evaluated batch."""
        Sigterm._asked += 1
        if jax.process_count() == 1:
            self.came = bool(self._received)
        else:
            self.came = self.came or multihost_utils.reached_preemption_sync_point(Sigterm._asked)
        return self.came
