"""Speed of a training step: this project, compared with plain Flax and PyTorch.

    python benchmarks/train_step.py                              # PAPER, batches of 128, float32
    python benchmarks/train_step.py --network=LENET5             # or another one of alexnet_jax/network/networks.py
    python benchmarks/train_step.py --batch=1024 --dtype=bfloat16        # for a GPU
    pip install torch                                            # optional: with PyTorch as well

All contestants have the same weights and the same batch on the device: float32 parameters, a forward and a backward
pass in --dtype, and the update by SGD with momentum and weight decay. Plain Flax (train_step_jax.py) is the obvious
code: `nn.Conv` with groups, `reduce_window` and JAX's derivatives of it. PyTorch (train_step_torch.py) runs eager and
compiled, with maps first and with maps last, and on a GPU with CUDA graphs; the others are compared with the best.

First the losses and gradients at test time are compared, on three images far from ties. In float64 all must be this
project's to EXACT: rounding explains no more. In --dtype none may be farther from float64 than TIMES the median of
the others. Then each contestant takes its first steps in its own process, without the libraries of the others. After
that they are timed in turn, as many of them and for as many rounds as --seconds allows, while the others wait. On a
CPU the script waits for each call; a GPU gets several at once. The table has

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

import shared

# The libraries of the contestants are imported only in their own processes, which also import this file.

EXACT = 1e-9  # of a gradient's norm, in float64
TIMES = 10
WARM = 2  # steps before the memory is read
SECONDS = 2  # shortest measurement
MODES = {"CUDA graphs": "reduce-overhead", "compiled": "default", "eager": None}  # of torch.compile
TORCH = {
    f"PyTorch, {mode}, maps {'last' if maps_last else 'first'}": {"compiled": MODES[mode], "maps_last": maps_last}
    for mode, maps_last in itertools.product(MODES, (True, False))
}
NAMES = "this project", *TORCH, "plain Flax"  # the last ones are left out where the time is short


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


def contestant(name, folder, layers, options, dtype, batch="batch"):
    """A contestant by its name, see train_step_jax.contestant. Call it in the contestant's own process."""
    # Compilation is timed, so programs from earlier runs must not be used.
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = tempfile.mkdtemp(dir=folder)
    if name in TORCH:
        import train_step_torch

        return train_step_torch.contestant(folder, layers, dtype=dtype, batch=batch, **TORCH[name])
    import train_step_jax

    ours = name == "this project"
    return train_step_jax.contestant(folder, options.network, layers, ours=ours, dtype=dtype, batch=batch)


def prepare(pipe, folder, options):
    """Sends the layers of the network, once its weights and a batch are in the folder, and the device's platform."""
    import train_step_jax

    pipe.send(train_step_jax.prepare(folder, options.network, options.batch, not options.no_check))


def distances(made, folder):
    """For each image the largest distance of a contestant's loss and gradients from the reference, over its norm.

    The reference is reference.npz in the folder; the first contestant that is asked, in float64, leaves its own there.
    """
    import numpy as np

    found = []
    for loss, gradients in made["gradients"]():
        arrays = {f"{layer}/{what}": a for layer, named in gradients.items() for what, a in named.items()}
        found.append({"loss": np.asarray(loss), **arrays})
    if not (folder / "reference.npz").exists():
        np.savez(folder / "reference.npz", **{f"{k}/{key}": a for k, of in enumerate(found) for key, a in of.items()})
    with np.load(folder / "reference.npz") as wanted:
        return [
            max(float(np.linalg.norm(a - (b := wanted[f"{k}/{key}"])) / np.linalg.norm(b)) for key, a in of.items())
            for k, of in enumerate(found)
        ]


def compare(pipe, name, folder, layers, options):
    """Sends a contestant's distance from the reference: in float64, and in the type that is timed.

    In float64 it is that of the worst image. In the other type it is that of the median image: rounding may still turn
    a decision in one image, but a fault shows in all.
    """
    exact, timed = (
        distances(contestant(name, folder, layers, options, dtype, "check"), folder)
        for dtype in ("float64", options.dtype)
    )
    pipe.send((max(exact), statistics.median(timed)))


def race(pipe, name, folder, layers, options):
    """Takes the first steps of a contestant, then makes the measurements that it is asked for."""
    seconds, at_least = shared.seconds, min(SECONDS, options.seconds / 100)
    entrant = contestant(name, folder, layers, options, options.dtype)
    compile_seconds = seconds(entrant["compile"]) if "compile" in entrant else None
    first = seconds(entrant["step"], entrant["wait"])
    pipe.send("the first step is done")

    for _ in range(WARM - 1):
        later = seconds(entrant["step"], entrant["wait"])
    if name in TORCH and TORCH[name]["compiled"]:
        compile_seconds = first - later
    allocated = entrant["allocated"]()
    memory = resident_peak() if allocated is None else allocated
    entrant["wait"](entrant["forward"]())
    pipe.send({"compile": compile_seconds, "memory": memory})

    together = shared.sent_together(entrant["on_cpu"], later, at_least)
    with contextlib.suppress(EOFError):  # there are no more questions
        while True:
            what = pipe.recv()
            pipe.send(shared.seconds_a_call(entrant[what], entrant["wait"], at_least, together))


def resident_peak():
    """The largest resident memory of this process so far, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak


def refusal(off):
    """Why contestants do not compute the same, or None if they do.

    Args:
      off: distances from the reference by name: in float64, and in the type that is timed.
    """
    for name, (exact, timed) in off.items():
        if not exact < EXACT:
            return f"{name} computes something else than {next(iter(off))}: in float64 they differ by {exact:.1e}."
        others = [other for peer, (_, other) in off.items() if peer != name]
        if others and not timed <= (allowed := TIMES * statistics.median(others)):
            return f"{name} is {timed:.1e} from float64; {TIMES} times the median of the others is {allowed:.1e}."
    return None


def check(names, folder, layers, options):
    """Ends the program unless all have the same loss and the same gradients."""
    off = {}
    for name in names:
        shared.say(f"check: {name}")
        exact, timed = off[name] = OwnProcess(name, compare, name, folder, layers, options).last_answer()
        shared.say(f"check: {name} is off by {exact:.1e} in float64, {timed:.1e} in {options.dtype}")
    if found := refusal(off):
        sys.exit(f"error: {found}")


def start(names, folder, layers, options):
    """The contestants' processes by name, and the measurements of their first steps.

    After two contestants, another one starts only if 1.5 times the longest start so far fits into --seconds.
    """
    processes, told, longest = {}, {}, 0.0
    for name in names:
        began = time.perf_counter()
        if len(processes) > 1 and began + 1.5 * longest > shared.end_after(options.seconds):
            shared.say(f"left out, because the time is short: {name}")
            continue
        shared.say(f"first steps: {name}")
        processes[name] = OwnProcess(name, race, name, folder, layers, options)
        processes[name].answer()
        first_step = time.perf_counter() - began
        told[name] = {"first step": first_step, **processes[name].answer()}
        longest = max(longest, time.perf_counter() - began)
    return processes, told


def measure(processes, batch_size, rounds):
    """Images/s of each contestant's steps and forward passes, in each round."""
    rates = {name: {"step": [], "forward": []} for name in processes}
    for k in rounds:
        shared.say(f"round {k + 1}")
        for name, process in processes.items():
            for what, found in rates[name].items():
                found.append(batch_size / process.answer(what))
    return rates


def print_table(rates, told):
    """One line for each contestant; ratios are medians over the rounds."""
    peers = [name for name in rates if name in TORCH] or [name for name in rates if name == "plain Flax"] or list(rates)
    columns, rows = [""], []
    for what in ("step", "forward"):
        columns += [f"{what}, images/s", "lowest", "highest", "ratio"]
    for name in rates:
        cells = [name]
        for what, mine in rates[name].items():
            best = max((rates[peer][what] for peer in peers), key=statistics.median)
            ratio = statistics.median(a / b for a, b in zip(mine, best, strict=True))
            cells += [f"{statistics.median(mine):.1f}", f"{min(mine):.1f}", f"{max(mine):.1f}", f"{ratio:.2f}"]
        compiled = told[name]["compile"]
        cells += ["" if compiled is None else f"{compiled:.1f}", f"{told[name]['first step']:.1f}"]
        rows.append([*cells, f"{told[name]['memory'] / 1e6:.0f}"])
    shared.print_table([*columns, "compile, s", "first step, s", "peak memory, MB"], rows)


def main():
    """Checks, times, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="PAPER", help="a name of alexnet_jax/network/networks.py's NAMED")
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--rounds", type=int, default=5, help="at most")
    parser.add_argument("--seconds", type=float, default=600, help="about this long; fewer rounds on a slow machine")
    parser.add_argument("--only", nargs="+", default=NAMES, choices=NAMES, metavar="NAME", help="contestants")
    parser.add_argument("--no-check", action="store_true", help="trust the contestants, after a run that checked them")
    options = parser.parse_args()
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the contestants share a GPU's memory
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as directory:
        folder = Path(directory)
        header = shared.machine()
        shared.say("weights and images")
        layers, platform = OwnProcess("the preparation", prepare, folder, options).last_answer()
        names = [name for name in NAMES if name in options.only]
        if not importlib.util.find_spec("torch"):
            names = [name for name in names if name not in TORCH]
        if platform == "cpu":
            names = [name for name in names if "CUDA" not in name]
        if not options.no_check:
            # PyTorch's modes of one layout have the same gradients: those of the uncompiled network.
            eager = (name.replace("compiled", "eager").replace("CUDA graphs", "eager") for name in names)
            check(list(dict.fromkeys(eager)), folder, layers, options)
        processes, told = start(names, folder, layers, options)
        rates = measure(processes, options.batch, shared.rounds(options.rounds, shared.end_after(options.seconds)))
        for process in processes.values():
            process.end()
    done = len(rates[next(iter(rates))]["step"])
    print(f"{options.network}, batches of {options.batch}, {options.dtype}, {done} rounds; {header}\n")
    print_table(rates, told)


if __name__ == "__main__":
    main()
