"""Several processes that run one program, on one host or many: started, in agreement, stopped together.

JAX's own runtime connects them (jax.distributed); here is what a run needs besides. With one
process everything here does nothing, or the obvious.
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
import time
import traceback
import uuid
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

from alexnet_jax.errors import UsageError


class AgreedError(UsageError):
    """A UsageError that all processes raise, and know that all do."""


@contextlib.contextmanager
def session(coordinator: str = "", num_processes: int = 0, process_id: int = -1, timeout: int = 100):
    """Connects this process with the others of its run, if there are others, for the time of a `with` block.

    Slurm, TPU pods, Kubernetes and Open MPI are recognised by JAX, and need no arguments.

    Args:
      coordinator: HOST:PORT of process 0, the same for all processes; "" to let JAX find out.
      num_processes: how many there are; 0 to let JAX find out, 1 for no others even if it would find some.
      process_id: which one this is, from 0 on; -1 to let JAX find out.
      timeout: seconds after which a process that is silent counts as lost.

    Raises:
      UsageError: if only a part of the first three is given, or process 0 cannot be reached.
        Where process 0 waits in vain for another, JAX ends the program.
    """
    _connect(coordinator, num_processes, process_id, timeout)
    try:
        yield
    except (AgreedError, FloatingPointError):
        raise  # on all processes, for all have the same numbers
    except (Exception, KeyboardInterrupt) as error:
        if jax.process_count() == 1:
            raise
        # Alone. An orderly end would wait for the others, and they for this one.
        _die(error)


def keep_compiled() -> None:
    """Lets JAX keep the programs that it compiles, so that the next run of the same network begins at once.

    They are kept where JAX_COMPILATION_CACHE_DIR says (nowhere, if it is empty), else in the user's cache, by host:
    what is compiled for one CPU need not run on another. Call it before anything is compiled.
    """
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(cache / "alexnet_jax" / platform.node()))


def convolve_with_eigen() -> None:
    """Lets XLA give a CPU's convolutions to Eigen, which the small networks train 1.4 to 1.6 times as fast with.

    jaxlib 0.10 to 0.12 give them to YNNPACK unless a flag says otherwise. Call it before any device is used; what
    XLA_FLAGS say about it stays. Where JAX is installed for an accelerator, it does nothing: XLA_FLAGS reach the
    accelerator's own XLA too, and one that does not know a flag ends the program.
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
        # When processes are lost, JAX says so and aborts; the stacks of all threads would bury that.
        faulthandler.disable()
    elif jax.distributed.is_initialized():
        # JAX now takes SIGTERM for a word to all processes, which a process alone would never hear.
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _initialize(arguments, timeout):
    """Whether there are other processes, now connected."""
    try:
        jax.distributed.initialize(*arguments, initialization_timeout=timeout, heartbeat_timeout_seconds=timeout)
    except (ValueError, RuntimeError) as error:
        if arguments:
            raise UsageError(
                f"the processes cannot be connected at {arguments[0]} ({error}). Is the port free?"
            ) from error
        # JAX found no sign of other processes, or has been used before (in a notebook).
        if "coordinator_address" in str(error) or "must be called before" in str(error):
            return False
        raise UsageError(
            f"JAX finds other processes but cannot connect to them ({error}). Give --coordinator, --num_processes and "
            "--process_id, or --num_processes=1 if there is but one."
        ) from error
    return jax.process_count() > 1


def _wait_for(coordinator, timeout):
    """Waits until process 0 listens; JAX would abort without a word on what to do."""
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
                    "Give HOST:PORT of process 0, start it as well, and let no firewall stand between."
                ) from error
            time.sleep(0.5)


def _die(error):
    """Ends this process at once, by which the others are cut off and end as well."""
    who = f"process {jax.process_index()} of {jax.process_count()}"
    if isinstance(error, UsageError):
        words = f"error: {error}\nThis was met by {who}; it stops, and the others with it."
    else:
        traceback.print_exception(error)
        words = (
            f"error: {who} stopped: {repr(error).splitlines()[0]}\n"
            "If this speaks of a connection or a peer, another process was lost first: see what it printed."
        )
    resume = "What was saved is kept; start all processes again with the same command, and they resume."
    print(words, resume, file=sys.stderr, flush=True)
    os._exit(1)


def say(line: str) -> None:
    """Prints a line, once for all processes."""
    if jax.process_index() == 0:
        print(line, flush=True)


def gather(text: str) -> list[str]:
    """The texts of all processes, in their order; each waits for all."""
    own = np.frombuffer(text.encode(), np.uint8)
    longest = multihost_utils.process_allgather(np.int32(len(own))).max()
    padded = multihost_utils.process_allgather(np.pad(own, (0, longest - len(own))))
    return [row.tobytes().rstrip(b"\0").decode() for row in padded]


def together(work):
    """Calls work() on every process; an error that the user can correct is raised on all if one of them meets it.

    Args:
      work: function without arguments, which talks with no other process.

    Returns:
      What work returned on this process.
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
    """As together, but process 0 works first: the others find what it prepares."""
    first = together(lambda: work() if jax.process_index() == 0 else None)
    return together(lambda: first if jax.process_index() == 0 else work())


def agree(values: dict[str, object]) -> None:
    """Raises UsageError on all processes unless all have the same values (JSON's types), naming one that differs."""
    first, *others = map(json.loads, gather(json.dumps(values, default=repr)))
    for process, other in enumerate(others, 1):
        for name in sorted(first.keys() | other.keys()):
            if first.get(name) != other.get(name):
                raise AgreedError(
                    f"the processes disagree: {name} is {first.get(name)!r} for process 0 and {other.get(name)!r} "
                    f"for process {process}. Start all of them with the same files and arguments."
                )


def share(folder: Path) -> None:
    """Makes a folder, and raises UsageError on all processes unless they all see the same one."""
    mark = folder / gather(f".shared-{uuid.uuid4().hex}")[0]

    def leave_mark():
        folder.mkdir(parents=True, exist_ok=True)
        if jax.process_index() == 0 and jax.process_count() > 1:
            mark.touch()

    def find_mark():
        if jax.process_count() > 1 and not mark.exists():
            raise UsageError(
                f"{folder} is not the folder of that name that process 0 sees. Give a --workdir on storage that all "
                "hosts share: checkpoints are written to it by all of them."
            )

    together(leave_mark)
    try:
        together(find_mark)
    finally:
        if jax.process_index() == 0:
            mark.unlink(missing_ok=True)


class Sigterm:
    """SIGTERM to one process stops all of them, at the same place. A context manager.

    Where there is but one process, Ctrl-C does the same; a second one ends the program as it always does. One within
    another informs the outer one as well.
    """

    _asked = 0  # in this process, for JAX counts so too

    def __init__(self):
        self.came = False  # and all processes know
        self._received, self._before = [], {}

    def __enter__(self):
        # With several processes JAX listens for the signal, and finds the call of `check` where all of them stop.
        if jax.process_count() == 1:
            listened = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
            # What a shell starts in the background ignores Ctrl-C, which is meant for others.
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
            os.write(2, b"\nStopping at the next step; Ctrl-C once more stops at once.\n")

    def _take(self, number):
        self._received.append(number)
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, signal.default_int_handler)

    def _outer(self, number):
        """The one around this one, if there is one."""
        listener = getattr(self._before.get(number), "__self__", None)
        return listener if isinstance(listener, Sigterm) else None

    def interrupted(self) -> bool:
        """Whether it was Ctrl-C that came, and nobody outside listens for it too."""
        return signal.SIGINT in self._received and self._outer(signal.SIGINT) is None

    def check(self) -> bool:
        """Whether to stop now. Every process must call this equally often: once a step, once an evaluated batch."""
        Sigterm._asked += 1
        if jax.process_count() == 1:
            self.came = bool(self._received)
        else:
            self.came = self.came or multihost_utils.reached_preemption_sync_point(Sigterm._asked)
        return self.came
