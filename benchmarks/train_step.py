"""Speed of a training step: this project, compared with plain Flax and PyTorch.

    python benchmarks/train_step.py                              # PAPER, batches of 128, float32
    python benchmarks/train_step.py --network=LENET5             # or another one of alexnet_jax/network/networks.py
    python benchmarks/train_step.py --batch=1024 --dtype=bfloat16        # for a GPU
    pip install torch                                            # optional: with PyTorch as well

All contestants have the same weights and the same batch on the device: float32 parameters, a forward and a backward
pass in --dtype, and the update by SGD with momentum and weight decay. Plain Flax (train_step_jax.py) is the obvious
code: `nn.Conv` with groups, `reduce_window` and JAX's derivatives of it. PyTorch (train_step_torch.py) runs eager and
compiled, with maps first and with maps last; the others are compared with the best of the four.

First the losses and gradients at test time are compared, in float32. Then each contestant takes its first steps in
its own process, without the libraries of the others. After that they are timed in turn, for several rounds, while the
others wait. On a CPU the script waits for each call; a GPU gets several at once. The table has

    step, forward   images/s of a training step and of a forward pass: the median of the rounds, the lowest and the
                    highest, and the median of the rounds' ratios to PyTorch's best
    compile         seconds to compile the step, with empty caches; for PyTorch the extra time of its first step
    first step      seconds from the start of the process to the end of its first step
    peak memory     after WARM steps, before any forward pass: on a CPU the largest resident memory of the process, with
                    its libraries and compiler; on a GPU the largest allocated memory

On a CPU, let nothing else run: if threads of PyTorch wait for a thread that has no core, small networks take 50 times
as long. For a CPU or a GPU; the memory must be enough for all contestants.
"""

import argparse
import contextlib
import importlib.util
import itertools
import multiprocessing
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

# The libraries of the contestants are imported only in their own processes, which also import this file.

# Largest distance of a gradient from this project's, relative to its norm. Most are within 1e-5. But if two numbers in
# a window are almost equal, rounding decides which of them a max pool takes.
LIMIT = 1e-2
WARM = 3  # steps before the memory is read
SECONDS = 2  # shortest measurement
QUEUED = 20  # calls sent to a GPU at once, so that it does not wait for Python
TORCH = {
    f"PyTorch, {'compiled' if compiled else 'eager'}, maps {'last' if maps_last else 'first'}": {
        "compiled": compiled,
        "maps_last": maps_last,
    }
    for maps_last, compiled in itertools.product((False, True), repeat=2)
}


class OwnProcess:
    """A function in its own process; it answers through a pipe, its first argument."""

    def __init__(self, name, function, *arguments):
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=function, args=(theirs, *arguments), daemon=True)
        self.process.start()
        theirs.close()

    def answer(self, question=None):
        """Sends a question, if there is one, and returns the next answer."""
        try:
            if question:
                self.pipe.send(question)
            return self.pipe.recv()
        except (EOFError, OSError):
            sys.exit(f"error: {self.name} ended too early; its output is above.")

    def last_answer(self):
        """The last answer, before the process ends."""
        found = self.answer()
        self.end()
        return found

    def end(self):
        """Closes the pipe and waits until the process has ended."""
        self.pipe.close()
        self.process.join()


def contestant(name, folder, layers, options, exact=False):
    """A contestant by its name, see train_step_jax.in_jax. Call it in the contestant's own process."""
    # Compilation is timed, so programs from earlier runs must not be used.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)
    dtype = "float32" if exact else options.dtype
    if name in TORCH:
        import train_step_torch

        return train_step_torch.contestant(folder, layers, dtype=dtype, exact=exact, **TORCH[name])
    import train_step_jax

    ours = name == "this project"
    return train_step_jax.contestant(folder, options.network, layers, ours=ours, dtype=dtype, exact=exact)


def prepare(pipe, folder, options):
    """Sends the layers of the network, once its weights and a batch are in the folder."""
    import train_step_jax

    pipe.send(train_step_jax.prepare(folder, options.network, options.batch))


def compare(pipe, name, folder, *arguments):
    """Sends a contestant's loss, and its largest distance from the loss and gradients of the first contestant."""
    import numpy as np

    loss, gradients = contestant(name, folder, *arguments, exact=True)["gradients"]()
    found = {f"{layer}/{what}": a for layer, named in gradients.items() for what, a in named.items()}
    found["loss"] = np.asarray(loss)
    path = folder / "gradients.npz"
    if not path.exists():
        np.savez(path, **found)
    with np.load(path) as wanted:
        off = {key: np.linalg.norm(found[key] - wanted[key]) / np.linalg.norm(wanted[key]) for key in wanted}
    pipe.send((float(loss), float(max(off.values()))))


def race(pipe, name, *arguments):
    """Takes the first steps of a contestant, then makes the measurements that it is asked for."""
    entrant = contestant(name, *arguments)
    compile_seconds = seconds(entrant["compile"]) if "compile" in entrant else None
    first = seconds(entrant["step"], entrant["wait"])
    pipe.send("the first step is done")

    for _ in range(WARM - 1):
        later = seconds(entrant["step"], entrant["wait"])
    if name in TORCH and TORCH[name]["compiled"]:
        compile_seconds = first - later
    allocated = entrant["allocated"]()
    memory = resident_peak() if allocated is None else allocated
    for _ in range(2):
        entrant["wait"](entrant["forward"]())
    pipe.send({"compile": compile_seconds, "memory": memory, "device": entrant.get("device")})

    together = 1 if entrant["on_cpu"] else QUEUED
    with contextlib.suppress(EOFError):  # there are no more questions
        while True:
            what = pipe.recv()
            pipe.send(seconds_a_call(entrant[what], entrant["wait"], together))


def seconds(call, wait=lambda _: None):
    """Seconds for one call."""
    began = time.perf_counter()
    wait(call())
    return time.perf_counter() - began


def seconds_a_call(call, wait, together):
    """Seconds for a call, averaged over calls for SECONDS, at least two."""
    began, calls = time.perf_counter(), 0
    while calls < 2 or time.perf_counter() - began < SECONDS:
        for _ in range(together):
            result = call()
        wait(result)
        calls += together
    return (time.perf_counter() - began) / calls


def resident_peak():
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def check(names, *arguments):
    """Ends the program unless all have the same loss and the same gradients."""
    for name in names:
        loss, off = OwnProcess(name, compare, name, *arguments).last_answer()
        if not off < LIMIT:
            sys.exit(f"error: {name} has another loss or gradient than this project, by {off:.1e} of its norm.")
        print(f"{name}: loss {loss:.6f}, gradients within {off:.1e}", flush=True)


def start(names, *arguments):
    """The contestants' processes by name, and the measurements of their first steps."""
    processes, told = {}, {}
    for name in names:
        began = time.perf_counter()
        processes[name] = OwnProcess(name, race, name, *arguments)
        processes[name].answer()
        first_step = time.perf_counter() - began
        told[name] = {"first step": first_step, **processes[name].answer()}
    return processes, told


def measure(processes, batch_size, rounds):
    """Images/s of each contestant's steps and forward passes, in each round."""
    rates = {name: {"step": [], "forward": []} for name in processes}
    for _ in range(rounds):
        for name, process in processes.items():
            for what, found in rates[name].items():
                found.append(batch_size / process.answer(what))
    return rates


def print_table(rates, told):
    """One line for each contestant; ratios are medians over the rounds."""
    peers = [name for name in rates if name in TORCH] or ["plain Flax"]
    columns = [f"{what}, images/s | lowest | highest | ratio" for what in ("step", "forward")]
    print("| | " + " | ".join([*columns, "compile, s", "first step, s", "peak memory, MB"]) + " |")
    print("|---" * 12 + "|")
    for name in rates:
        cells = [name]
        for what, mine in rates[name].items():
            best = max((rates[peer][what] for peer in peers), key=statistics.median)
            ratio = statistics.median(a / b for a, b in zip(mine, best, strict=True))
            cells += [f"{statistics.median(mine):.1f}", f"{min(mine):.1f}", f"{max(mine):.1f}", f"{ratio:.2f}"]
        compiled = told[name]["compile"]
        cells += ["" if compiled is None else f"{compiled:.1f}", f"{told[name]['first step']:.1f}"]
        print("| " + " | ".join([*cells, f"{told[name]['memory'] / 1e6:.0f}"]) + " |")


def main():
    """Checks, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="PAPER", help="a name of alexnet_jax/network/networks.py's NAMED")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the contestants share a GPU's memory
    names = ["this project", "plain Flax", *(TORCH if importlib.util.find_spec("torch") else ())]
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        folder = Path(directory)
        layers = OwnProcess("the preparation", prepare, folder, options).last_answer()
        check([name for name in names if "compiled" not in name], folder, layers, options)
        processes, told = start(names, folder, layers, options)
        rates = measure(processes, options.batch, options.rounds)
        for process in processes.values():
            process.end()
    device = told["this project"]["device"]
    print(f"\n{options.network}, batches of {options.batch}, {options.dtype}, {device}, {options.rounds} rounds\n")
    print_table(rates, told)


if __name__ == "__main__":
    main()
