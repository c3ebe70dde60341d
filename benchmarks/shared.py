"""What the benchmarks share: lines of progress, rounds within a time, the machine's own speed, tables.

Imports JAX only inside functions, because some contestants run without it.
"""

import os
import platform
import subprocess
import sys
import time
from pathlib import Path

# The update rule of train_step.py's contestants; the rate is so small that the weights, and with them the times, hardly
# change.
RATE, MOMENTUM, DECAY = 1e-6, 0.9, 5e-4
QUEUED = 20  # calls sent to an accelerator at once, so that it does not wait for Python
BEGAN = time.perf_counter()


def say(text):
    """A line of progress with the seconds since the start, on stderr, so that stdout has the tables alone."""
    print(f"[{time.perf_counter() - BEGAN:4.0f} s] {text}", file=sys.stderr, flush=True)


def end_after(limit):
    """When the script's time of `limit` seconds is over, on the clock of time.perf_counter."""
    return BEGAN + limit


def rounds(most, end):
    """Counts rounds: at least one, at most `most`, and none that would pass `end` if it took as long as the longest."""
    longest = 0.0
    for k in range(most):
        began = time.perf_counter()
        if k and began + longest > end:
            say(f"the time ends: {k} of {most} rounds")
            return
        yield k
        longest = max(longest, time.perf_counter() - began)


def seconds(call, wait=lambda _: None):
    """Seconds for one call."""
    began = time.perf_counter()
    wait(call())
    return time.perf_counter() - began


def seconds_a_call(call, wait, at_least, together=1):
    """Seconds for a call, averaged over calls for `at_least` seconds; `together` of them are sent before each wait."""
    began, calls = time.perf_counter(), 0
    while not calls or time.perf_counter() - began < at_least:
        for _ in range(together):
            result = call()
        wait(result)
        calls += together
    return (time.perf_counter() - began) / calls


def sent_together(on_cpu, one, at_least):
    """How many calls of `one` second each are sent to a device before it is waited for; a CPU gets one."""
    return 1 if on_cpu else max(1, min(QUEUED, int(at_least / one)))


def matrix_rate(dtype="float32"):
    """The highest floating-point operations/s of a large matrix product, with JAX's own precision for that dtype."""
    import jax
    import jax.numpy as jnp

    on_cpu = jax.default_backend() == "cpu"
    side = 2048 if on_cpu else 8192
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), dtype)
    product = jax.jit(jnp.matmul)
    jax.block_until_ready(product(a, b))
    return 2 * side**3 / _quickest(lambda: product(a, b))


def copy_rate():
    """The highest bytes/s read and written when one is added to 256 MB; in place, so that it needs no new memory."""
    import jax
    import jax.numpy as jnp

    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    held = [jnp.zeros(2**26, jnp.float32)]

    def call():
        held[0] = add_one(held[0])
        return held[0]

    jax.block_until_ready(call())
    return 2 * held[0].nbytes / _quickest(call)


def _quickest(call):
    import jax

    together = 1 if jax.default_backend() == "cpu" else QUEUED
    return min(seconds_a_call(call, jax.block_until_ready, 0.3, together) for _ in range(3))


def machine():
    """The machine in one line: device, cores, and its float32 matrix-product and copy rates, measured now.

    A process of its own measures them, so that JAX takes nothing here. BENCHMARK_MACHINE of the environment saves the
    time: the line that this script printed a few minutes ago.
    """
    if "BENCHMARK_MACHINE" in os.environ:
        return os.environ["BENCHMARK_MACHINE"]
    say("the machine's own speed")
    found = subprocess.run([sys.executable, __file__], stdout=subprocess.PIPE, text=True)
    return found.stdout.strip() if found.returncode == 0 else sys.exit("error: JAX has no device that works here.")


def _machine():
    import jax

    device = jax.devices()[0]
    name = _processor() if device.platform == "cpu" else f"{device.device_kind}, {_processor()}"
    rates = f"float32: matrix product {matrix_rate() / 1e9:.1f} GFLOP/s, copy {copy_rate() / 1e9:.1f} GB/s"
    return f"{name}, {cores()} cores; {rates}"


def cores():
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def print_table(columns, rows):
    """Prints a table in Markdown; the cells are strings."""
    print("| " + " | ".join(columns) + " |")
    print("|---" * len(columns) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    print(_machine())
