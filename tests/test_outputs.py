"""What a run writes and shows: metrics line by line, the result, the closing table."""

import json
import types

import jax
import numpy as np
import pytest

from alexnet_jax.evaluation.errors import Errors, errors_table
from alexnet_jax.training import outputs
from alexnet_jax.training.outputs import Journal, JsonLinesWriter, Progress, first_not_finite, make_writer, write_result


def line(step):
    return json.dumps({"step": step, "loss": step / 4}) + "\n"


def steps_in(path):
    return [json.loads(text)["step"] for text in path.read_text().splitlines()]


def test_metrics_are_one_object_a_line_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    writer = JsonLinesWriter(path, 0)
    writer.write_scalars(1, {"loss": np.float32(0.5), "error": 25})
    assert path.read_text() == '{"step": 1, "loss": 0.5, "error": 25.0}\n'  # before any flush
    writer.write_scalars(2, {"loss": 0.25})
    writer.close()
    assert steps_in(path) == [1, 2]


def test_lines_past_the_step_of_the_checkpoint_are_taken_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(map(line, (2, 4, 5, 6, 8))))
    writer = JsonLinesWriter(path, 5)
    assert steps_in(path) == [2, 4, 5]
    writer.write_scalars(6, {"loss": 7.0})
    writer.close()
    assert path.read_text() == line(2) + line(4) + line(5) + '{"step": 6, "loss": 7.0}\n'
    assert [p.name for p in tmp_path.iterdir()] == ["metrics.jsonl"]


@pytest.mark.parametrize("half", ['{"step": 3, "lo', "{", '{"step', line(3).rstrip("\n}")])
def test_a_line_that_was_cut_off_is_taken_out(tmp_path, half):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(2) + half)
    writer = JsonLinesWriter(path, 10)
    writer.write_scalars(3, {"loss": 0.75})
    writer.close()
    assert path.read_text() == line(1) + line(2) + line(3)


def test_a_new_run_begins_with_an_empty_file(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(line(1) + line(2))
    JsonLinesWriter(path, 0).close()
    assert path.read_text() == ""


def test_scalars_go_to_lines_and_to_events(tmp_path):
    writer = make_writer(tmp_path, 0)
    writer.write_scalars(3, {"loss": 0.5})
    writer.flush()
    writer.close()
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 3, "loss": 0.5}\n'
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"loss" in events.read_bytes()


def test_the_result_is_written_whole(tmp_path):
    result = {"one_view": {"top1_error": 12.5}, "steps": 3}
    write_result(tmp_path, {"steps": 1})
    write_result(tmp_path, result)
    assert json.loads((tmp_path / "result.json").read_text()) == result
    assert [p.name for p in tmp_path.iterdir()] == ["result.json"]


def errors(top1, top5, views):
    return Errors(top1_error=top1, top5_error=top5, loss=1.0, examples=50_000, views=views)


def test_the_table_is_like_the_paper_s():
    table = errors_table(
        "PAPER, imagenet2012", {"one_view": errors(40.71, 18.23, 1), "ten_views": errors(39, 16.96, 10)}
    )
    assert table.splitlines() == [
        "PAPER, imagenet2012   top-1   top-5",
        "one view              40.7%   18.2%",
        "ten views             39.0%   17.0%",
    ]


def test_the_table_says_where_ten_views_are_five():
    table = errors_table("T", {"one_view": errors(100, 0, 1), "ten_views": errors(2.5, 0.04, 5)})
    assert table.splitlines() == [
        "T                                 top-1   top-5",
        "one view                         100.0%    0.0%",
        "ten views (the five unmirrored)    2.5%    0.0%",
    ]


def test_a_metric_that_is_not_finite_is_named():
    assert first_not_finite({"loss": np.float32(1), "squares": np.ones(2)}) is None
    assert first_not_finite({"loss": np.float32(1), "squares": np.array([1, np.inf])}) == "squares"
    assert first_not_finite({"loss": np.float32("nan"), "squares": np.ones(2)}) == "loss"


def test_where_there_is_no_terminal_progress_is_plain_lines(capsys):
    progress = Progress(start=2, stop=4, batch_size=8)
    progress.update(3, 1.5, 0.01, 0.0)
    progress.update(4, 1.25, 0.0002, 12.3)
    progress.say("validation")
    progress.close()
    shown = capsys.readouterr()
    first, second = shown.out.splitlines()  # nothing at step 3: ten seconds are not over
    assert first.startswith("step 4/4  loss 1.250  rate 0.0002  ")
    assert first.endswith(" images/s  waiting 12%  0 s left")
    assert second == "validation"
    assert shown.err == ""


@pytest.mark.parametrize(
    ("batch_takes", "step_takes", "waiting"),
    [
        (1, 4, 0),  # the batch is there before the device has done
        (5, 4, 20),  # the device has nothing to do in 1 of 5 seconds
        (10, 1, 90),
    ],
)
def test_waiting_is_the_time_in_which_the_device_has_nothing_to_do(monkeypatch, batch_takes, step_takes, waiting):
    clock = types.SimpleNamespace(now=0.0, device_free=0.0)
    monkeypatch.setattr(outputs.time, "monotonic", lambda: clock.now)

    class Watch:
        """Knows when a step will have been done, on a clock that only the test moves."""

        def submit(self, _, loss):
            ready = clock.device_free = max(clock.now, clock.device_free) + step_takes
            return types.SimpleNamespace(done=lambda: clock.now >= ready, result=lambda: ready)

    def batches():
        for _ in range(9):
            clock.now += batch_takes
            yield "batch"

    lines = []
    progress = types.SimpleNamespace(update=lambda *_: None)
    writer = types.SimpleNamespace(write_scalars=lambda step, scalars: lines.append(scalars))
    journal = Journal(progress, writer, every_steps=4, batch_size=10)
    journal._watch = Watch()
    wait_for_it = [0.0]  # when the step before is done: the journal fetches its loss
    for step, _ in enumerate(journal.take(batches()), 1):
        before, wait_for_it[0] = wait_for_it[0], max(clock.now, clock.device_free) + step_takes
        clock.now = max(clock.now, before)
        journal.add(step, {"loss": 1.0, "error": 2.0, "learning_rate": 3.0, "gradient_norm": 4.0})
    assert len(lines) == 2
    period = max(batch_takes, step_takes)
    assert lines[1]["waiting_percent"] == pytest.approx(waiting)
    assert lines[1]["images_per_second"] == pytest.approx(10 / period)


def test_loss_and_error_of_a_line_are_means_over_the_steps_since_the_line_before():
    lines = []
    progress = types.SimpleNamespace(update=lambda *_: None)
    writer = types.SimpleNamespace(write_scalars=lambda step, scalars: lines.append((step, scalars)))
    journal = Journal(progress, writer, every_steps=3, batch_size=10)
    for step in range(1, 7):
        number = jax.numpy.float32(step)
        journal.add(step, {"loss": number, "error": 10 * number, "learning_rate": number, "gradient_norm": number})
    journal.catch_up()
    assert [(step, line["train_loss"], line["train_error"]) for step, line in lines] == [(3, 2, 20), (6, 5, 50)]
    assert [line["learning_rate"] for _, line in lines] == [3, 6]  # that of the step itself
