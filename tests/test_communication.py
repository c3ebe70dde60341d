"""The table of what devices send each other, against counts by hand."""

import re

import pytest

from alexnet_jax import PAPER, QUICKSTART, SLIDES, cli
from alexnet_jax.training.communication import communication

# Maps and neurons that cross for each image, from the paper's sizes: into conv3 (13 x 13 x 256),
# fc6 (6 x 6 x 256), fc7, fc8, and the logits.
CROSSING = 13 * 13 * 256 + 6 * 6 * 256 + 4096 + 4096 + 1000


def rows_of(table):
    """{(where, what, over): bytes that a device sends}"""
    rows = {}
    for line in table.splitlines()[1:]:
        if match := re.match(r"(\S+(?: backward)?) +(\w+) +(data and tower|tower|data) .* ([\d,]+)$", line):
            *name, sent = match.groups()
            rows[tuple(name)] = int(sent.replace(",", ""))
    return rows


def total(table, over):
    return int(re.search(rf"^Over {over}: ([\d,]+) bytes a step", table, re.MULTILINE)[1].replace(",", ""))


@pytest.mark.parametrize("batch_size", [128, 2])
def test_the_bytes_between_two_towers_are_those_counted_by_hand(batch_size):
    table = communication(PAPER, kind="towers", tower=2, devices=2, batch_size=batch_size)
    # Each device sends its half to the other, forward; and backward the half of the sum that is the other's.
    assert total(table, "tower") == 2 * batch_size * 4 * CROSSING
    assert "data" not in table.replace("(data x tower)", "")
    rows = rows_of(table)
    assert len(rows) == 10
    assert rows["into_conv3", "all_gather", "tower"] == batch_size * 4 * 13 * 13 * 128
    assert rows["into_conv3 backward", "reduce_scatter", "tower"] == batch_size * 4 * 13 * 13 * 128
    assert rows["into_logits", "all_gather", "tower"] == batch_size * 4 * 500


def test_with_four_devices_each_also_sends_its_gradient_over_data():
    table = communication(PAPER, kind="towers", tower=2, devices=4, batch_size=128)
    assert total(table, "tower") == 2 * 128 * 4 * CROSSING
    rows = rows_of(table)
    # Two devices add up half of the parameters: each sends as many bytes as it has.
    assert rows["gradients", "psum", "data"] == 4 * 60_965_224 // 2
    assert rows["metrics", "psum", "data"] == 2 * 4


def test_the_weird_trick_sends_the_gradients_of_convolutions_and_the_outputs_of_dense_layers():
    devices, batch = 8, 128
    rows = rows_of(communication(PAPER, kind="weird_trick", tower=1, devices=devices, batch_size=batch))
    convolutions = 34_944 + 307_456 + 885_120 + 663_936 + 442_624
    assert rows["gradients", "psum", "data and tower"] == 2 * (devices - 1) * 4 * convolutions // devices
    # Each device tells its images' 9216 numbers to the seven others; back comes the sum of what they found.
    assert rows["into_fc6", "all_gather", "data and tower"] == (devices - 1) * (batch // devices) * 4 * 9216
    assert rows["into_fc6 backward", "reduce_scatter", "data and tower"] == 7 * (batch // devices) * 4 * 9216
    # Of 4096 neurons it tells its own 512: to the three that have the same tower's, then, joined, to the other tower.
    assert rows["into_fc7", "all_gather", "data"] == 3 * batch * 4 * 512
    assert rows["into_fc7", "all_gather", "tower"] == batch * 4 * 2048
    assert rows["drop6", "all_gather", "data and tower"] == 7 * (batch // devices) * 4
    assert {over for *_, over in rows} == {"data", "tower", "data and tower"}


def test_a_device_alone_sends_nothing():
    table = communication(QUICKSTART, kind="towers", tower=1, devices=1, batch_size=8)
    assert rows_of(table) == {}
    assert "bytes a step" not in table


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch_size is 3; accepted are multiples of 2, the 2 devices"):
        communication(SLIDES, kind="towers", tower=1, devices=2, batch_size=3)


def test_the_command_prints_the_table(capsys):
    cli.main(["summary", "--communication"])
    assert capsys.readouterr().out == communication(PAPER, kind="towers", tower=2, devices=2, batch_size=128) + "\n"
    cli.main(["summary", "--architecture=SLIDES", "--communication", "--devices=4", "--batch_size=8"])
    assert capsys.readouterr().out == communication(SLIDES, kind="towers", tower=1, devices=4, batch_size=8) + "\n"
    cli.main(["summary", "--architecture=QUICKSTART", "--communication", "--devices=4", "--placement=weird_trick"])
    shown = capsys.readouterr().out
    assert shown == communication(QUICKSTART, kind="weird_trick", tower=1, devices=4, batch_size=128) + "\n"


def test_the_command_refuses_towers_that_are_not_there(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["summary", "--architecture=SLIDES", "--communication", "--tower=2"])
    assert stop.value.code.startswith("error: --tower is 2, but the architecture has 1 tower(s)")
    assert "Set --tower=1" in stop.value.code


@pytest.mark.parametrize("argument", ["--devices=0", "--devices=-2", "--tower=0", "--batch_size=0"])
def test_the_command_refuses_numbers_below_1(argument, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["summary", "--communication", argument])
    assert stop.value.code == 2
    assert "accepted is an integer of at least 1" in capsys.readouterr().err
