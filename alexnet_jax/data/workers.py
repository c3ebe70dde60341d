"""Makes the shards of a prepared dataset, in this process or in many."""

import contextlib
import itertools
import multiprocessing
import os
import signal
import threading
from concurrent.futures import FIRST_COMPLETED, CancelledError, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

import jax
import tensorflow as tf

from alexnet_jax import data
from alexnet_jax.data.shards import SAME_COMMAND, make_shard
from alexnet_jax.errors import UsageError

_worker = None  # in a worker process: the arguments of _start


def make_here(work, shards, bar):
    """Makes shards in this process. Returns a line for each broken image; arguments as in make_by_many."""
    return [line for shard in shards for line in make_shard(work, shard, bar.update)]


def make_by_many(work, shards, workers, bar):
    """Makes shards in several processes.

    Args:
      work: shards.Work.
      shards: list of shards.Shard.
      workers: number of processes.
      bar: tqdm, which counts images.

    Returns:
      A line for each broken image, in no particular order.

    Raises:
      UsageError: if a worker dies.
    """
    context = multiprocessing.get_context("spawn")
    # One counter for each shard, without a lock: a worker that is killed would never release the lock.
    progress, stop = context.RawArray("q", max(len(shards), 1)), context.RawValue("b", 0)
    already, found, running = bar.n, [], {}  # running: future -> number of its shard
    todo = iter(enumerate(shards))
    pool = ProcessPoolExecutor(workers, context, initializer=_start, initargs=(work, progress, stop))
    try:
        while True:
            with _children_without_interrupts():
                for index, shard in itertools.islice(todo, 2 * workers - len(running)):
                    running[pool.submit(_make_in_worker, index, shard)] = index
            if not running:
                return found
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            bar.update(already + sum(progress) - bar.n)
            for future in done:
                found += future.result()
                del running[future]
    except BrokenProcessPool as error:
        at = ((shards[index], progress[index]) for index in running.values())
        names = ", ".join(f"{shard.split}/{shard.examples[count - 1].name}" for shard, count in at if count)
        raise UsageError(
            f"A worker died. If there was not enough memory, set --workers to less than {workers}. A script that "
            f'calls this needs `if __name__ == "__main__":`. An image may crash its decoder; the workers were at these '
            f"images: {names or 'none yet'}. "
            f"{SAME_COMMAND}"
        ) from error
    finally:
        stop.value = 1
        pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def _children_without_interrupts():
    """Blocks Ctrl-C in this thread. Processes that are started meanwhile never receive it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start(*arguments):
    global _worker
    _worker = arguments
    parent = multiprocessing.parent_process().sentinel
    threading.Thread(target=lambda: (multiprocessing.connection.wait([parent]), os._exit(1)), daemon=True).start()
    jax.config.update("jax_platforms", "cpu")
    data.hide_accelerators_from_tensorflow()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)


def _make_in_worker(index, shard):
    work, progress, stop = _worker

    def tick():
        if stop.value:
            raise CancelledError
        progress[index] += 1

    return make_shard(work, shard, tick)
