"""What a run shows and writes: progress, metrics.jsonl, TensorBoard events, result.json, the closing table."""

import collections
import json
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
from absl import logging
from clu import metric_writers
from tqdm import tqdm

from alexnet_jax.files import read_metrics, write_whole
from alexnet_jax.files.copies import named


class JsonLinesWriter(metric_writers.MetricWriter):
    """Writes scalars as one JSON object a line; each line is in the file before the next step.

    Lines after `step` come from a run that was stopped after its last checkpoint. They are removed,
    and the resumed run writes them again.
    """

    def __init__(self, path: Path, step: int):
        if path.exists():
            lines = [line for line, metrics in read_metrics(path) if metrics["step"] <= step]
            write_whole(path, "".join(line + "\n" for line in lines))
        self._file = path.open("a", buffering=1)

    def write_scalars(self, step, scalars):
        """Writes {"step": step, name: value, ...}."""
        self._file.write(json.dumps({"step": step} | {name: float(value) for name, value in scalars.items()}) + "\n")

    def flush(self):
        """Does nothing: each line is written at once."""

    def close(self):
        """Closes the file."""
        self._file.close()

    def _scalars_only(self, *_args, **_kwargs):
        """Other kinds of metrics go to TensorBoard alone."""

    write_images = write_videos = write_audios = write_texts = _scalars_only
    write_histograms = write_pointcloud = write_summaries = write_hparams = _scalars_only


def make_writer(workdir: Path, step: int) -> metric_writers.MetricWriter:
    """Writes to metrics.jsonl and to TensorBoard events; with several processes, only process 0 writes."""
    if jax.process_index():
        return metric_writers.MultiWriter([])
    events = metric_writers.AsyncWriter(metric_writers.SummaryWriter(str(workdir)))
    return metric_writers.MultiWriter([JsonLinesWriter(workdir / "metrics.jsonl", step), events])


class Progress:
    """A bar on a terminal, else a line every ten seconds.

    It shows the loss, the learning rate, images/s, the % of the time spent waiting for data, and the time left.
    """

    def __init__(self, *, start: int, stop: int, batch_size: int):
        silent = True if jax.process_index() else None  # None: on a terminal only
        self._bar = tqdm(total=stop, initial=start, unit="step", disable=silent, dynamic_ncols=True)
        self._stop, self._batch_size = stop, batch_size
        self._told_at = self._began = time.monotonic()
        self._first = start

    def update(self, step: int, loss: float, rate: float, waiting: float) -> None:
        """Shows that `step` steps are done; `waiting`: % of the time in which the device waited for data."""
        now = time.monotonic()
        images_per_second = (step - self._first) * self._batch_size / max(now - self._began, 1e-9)
        shown = f"loss {loss:.3f}  rate {rate:.3g}  {images_per_second:.0f} images/s  waiting {waiting:.0f}%"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update(1)
        if self._bar.disable and (now - self._told_at > 10 or step == self._stop):
            left = (self._stop - step) * self._batch_size / images_per_second
            self._told_at = now
            self.say(f"step {step}/{self._stop}  {shown}  {left:.0f} s left")

    def say(self, line: str) -> None:
        """Prints a line without breaking the bar."""
        if jax.process_index() == 0:
            self._bar.write(named(line), file=sys.stdout)
            sys.stdout.flush()

    def close(self) -> None:
        """Removes the bar."""
        self._bar.close()


class Journal:
    """Collects the metrics of steps. It fetches them one step late, so that the device never waits for it."""

    def __init__(self, progress, writer, every_steps, batch_size, begun=(), look_at=lambda step, metrics: None):
        self._pending = collections.deque()
        self._progress, self._writer, self._every_steps, self._batch_size = progress, writer, every_steps, batch_size
        self._look_at = look_at  # called with each step and its metrics, on the host
        self.begun = list(begun)  # (loss, error) of each step since the last line; a resumed run gets them back
        self._steps, self._since = 0, time.monotonic()  # since the last line, in this process
        self.waited = 0.0  # seconds in which the device waited for data, since the last line
        self._watch, self._ready_at = ThreadPoolExecutor(1), None

    def take(self, batches: Iterator) -> Iterator:
        """Passes batches on, and measures how long the device waits for the next one."""
        while True:
            asked = time.monotonic()
            try:
                batch = next(batches)
            except StopIteration:
                return
            if self._ready_at is not None and self._ready_at.done():  # otherwise the device is still working
                self.waited += time.monotonic() - max(asked, self._ready_at.result())
            yield batch

    def add(self, step: int, metrics: dict[str, jax.Array]) -> None:
        """Adds the metrics of a step that may still be running; reads those that were added before.

        The metrics may be those of several steps, along their first axis; `step` is then the last. Raises
        FloatingPointError if those that are read are not finite.
        """
        self._pending.append((step, metrics))
        self._ready_at = self._watch.submit(_time_when_ready, metrics["loss"])
        while len(self._pending) > 1:
            self._look(*self._pending.popleft())

    def catch_up(self) -> None:
        """Waits for all steps that were added, and reads their metrics; raises as `add` does."""
        while self._pending:
            self._look(*self._pending.popleft())

    def _look(self, last, metrics):
        metrics = {name: np.atleast_1d(values) for name, values in jax.device_get(metrics).items()}
        steps = range(last - len(metrics["loss"]) + 1, last + 1)
        for k, step in enumerate(steps):
            self._look_at_one(step, {name: values[k] for name, values in metrics.items()})

    def _look_at_one(self, step, metrics):
        if name := first_not_finite(metrics):
            raise FloatingPointError(
                f"{name} is not finite at step {step}. The last good checkpoint is kept; start again with a smaller "
                "--config.learning_rate, in another --workdir."
            )
        self.begun.append((float(metrics["loss"]), float(metrics["error"])))
        self._steps += 1
        seconds = time.monotonic() - self._since
        waiting = 100 * self.waited / seconds
        self._progress.update(step, float(metrics["loss"]), float(metrics["learning_rate"]), waiting)
        self._look_at(step, metrics)
        if step % self._every_steps == 0:
            loss, error = np.mean(self.begun, axis=0)
            scalars = {
                "train_loss": loss,
                "train_error": error,
                "learning_rate": metrics["learning_rate"],
                "gradient_norm": metrics["gradient_norm"],
                "images_per_second": self._steps * self._batch_size / seconds,
                "waiting_percent": waiting,
            }
            self._writer.write_scalars(step, scalars)
            self.begun, self._steps, self._since, self.waited = [], 0, time.monotonic(), 0.0


def _time_when_ready(array):
    array.block_until_ready()
    return time.monotonic()


def write_result(workdir: Path, result: dict) -> None:
    """Writes result.json, completely or not at all."""
    write_whole(workdir / "result.json", json.dumps(result, indent=2) + "\n")


def first_not_finite(metrics: dict[str, np.ndarray]) -> str | None:
    """The name of a metric that is infinite or not a number, if there is one."""
    bad = next((name for name, value in metrics.items() if not np.isfinite(value).all()), None)
    if bad:
        logging.error("%s is %s", bad, metrics[bad])
    return bad
