"""The schedule on made-up losses and errors; every step at which it does something is worked out by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet_jax.training import schedule

PLATEAU = {"factor": 0.1, "patience": 2, "patience_steps": 0, "drops": 3, "threshold": 0.01}
STEP = jax.jit(schedule.after_step)


def learning(step=0):
    """A state that has left chance."""
    return schedule.initial(10).replace(left_chance=jnp.int32(1), since=jnp.int32(step))


def scales(errors, steps_per_epoch=100, state=None, **changes):
    """The multiplier after each evaluation, one an epoch."""
    state, seen = learning() if state is None else state, []
    for epoch, error in enumerate(errors, 1):
        state = schedule.after_evaluation(state, error, epoch * steps_per_epoch, **PLATEAU | changes)
        seen.append(float(state.scale))
    return seen


def drops(errors, **changes):
    """The numbers of the evaluations, from 1 on, after which the rate dropped."""
    seen = [1.0, *scales(errors, **changes)]
    return [epoch for epoch in range(1, len(seen)) if seen[epoch] < 0.99 * seen[epoch - 1]]


def test_the_rate_warms_up_in_equal_steps():
    assert [float(schedule.warmup(4)(step)) for step in range(6)] == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1])
    assert [float(schedule.warmup(steps)(0)) for steps in (0, 1)] == [1, 1]


def test_the_rate_falls_linearly_to_zero_at_the_end():
    assert [float(schedule.cooldown(6, 4)(step)) for step in range(7)] == pytest.approx([1, 1, 1, 0.75, 0.5, 0.25, 0])
    assert [float(schedule.cooldown(6, 0)(step)) for step in range(7)] == [1] * 7


def test_the_rate_drops_when_the_error_stops_improving():
    # 50 and 40 improve; 40 and 39.9 do not improve by a hundredth; 30 does; two of 31 do not.
    got = scales([50, 40, 40, 39.9, 30, 31, 31, 29])
    assert got == pytest.approx([1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01])


def test_the_rate_drops_three_times_at_most():
    assert scales([50] * 12)[-1] == pytest.approx(1e-3, rel=1e-5)
    assert scales([50] * 12, drops=0)[-1] == 1


def test_waiting_starts_anew_right_after_a_drop():
    # The first 50 is the best so far; then every second one without improvement makes a drop, until there were three.
    assert scales([50] * 9) == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-3])


def test_a_constant_error_waits_for_enough_steps():
    # The best is of evaluation 1, step 100. 250 steps later is step 350, so evaluation 4; then 7; then 10.
    assert drops([50] * 20, patience_steps=250) == [4, 7, 10]
    # 200 steps later is exactly evaluation 3: as without the wait in steps.
    assert drops([50] * 20, patience_steps=200) == [3, 5, 7]


def test_short_epochs_do_not_end_a_run_early():
    # 120 images, batches of 64: evaluations at the steps 2, 4, 6, ... Patience of 3 evaluations alone: 4, 7, 10.
    assert drops([90] * 75, steps_per_epoch=2, patience=3) == [4, 7, 10]
    # With 180 steps from step 2 on: step 182, which a run of 150 steps does not reach.
    assert drops([90] * 75, steps_per_epoch=2, patience=3, patience_steps=180) == []
    assert drops([90] * 100, steps_per_epoch=2, patience=3, patience_steps=180) == [91]


def test_a_slow_start_does_not_count():
    state = schedule.initial(10)  # at chance
    assert drops([90] * 50, state=state) == []
    # Ten evaluations at chance, then it learns: the wait begins at the tenth. The first error of 90 was the best.
    for epoch in range(1, 11):
        state = schedule.after_evaluation(state, 90.0, 100 * epoch, **PLATEAU)
    assert (int(state.evaluations), int(state.since), float(state.best)) == (0, 1000, 90.0)
    state = state.replace(left_chance=jnp.int32(1050))
    for epoch, wanted in ((11, 1.0), (12, 0.1)):
        state = schedule.after_evaluation(state, 90.0, 100 * epoch, **PLATEAU)
        assert float(state.scale) == pytest.approx(wanted)


def test_noise_around_a_better_error_does_not_count():
    # Improvements of a hundredth at 1, 3, 6 (60 -> 55 -> 50); two in a row without one first at 4 and 5: a drop at 5.
    # After it the wait starts anew: 6 improves, 7 and 8 do not: a drop at 8.
    assert drops([60, 61, 55, 56, 57, 50, 52, 51, 49.9]) == [5, 8]
    # In steps of 100: the best is of 300, so 250 steps are over at 600, where 50 improves; then 900, evaluation 9.
    assert drops([60, 61, 55, 56, 57, 50, 52, 51, 49.9], patience_steps=250) == [9]


PAPER = {"factor": 0.1, "patience": 5, "patience_steps": 1000, "drops": 3, "threshold": 1e-3, "steps_per_epoch": 10_009}


def test_a_run_as_in_the_paper_drops_three_times():
    # The best errors are of the evaluations 3, 9, 15 and 21; five evaluations later the rate drops, until it has three
    # times.
    errors = [60, 50, *[45] * 6, *[42] * 6, *[41] * 6, *[40.7] * 30]
    assert drops(errors, **PAPER) == [8, 14, 20]


@given(st.lists(st.floats(1, 99), min_size=1, max_size=40))
def test_the_paper_s_run_never_waits_for_steps(errors):
    # ImageNet's epoch has 10,009 steps: five evaluations without improvement are at least 50,045 steps.
    assert drops(errors, **PAPER) == drops(errors, **PAPER | {"patience_steps": 0})


def test_chance_is_the_entropy_of_the_labels():
    assert float(schedule.chance_loss(None, 10)) == pytest.approx(math.log(10))
    assert float(schedule.chance_loss(jnp.array([5, 5, 5, 5]), 4)) == pytest.approx(math.log(4))
    # Nine to one: -0.9 ln 0.9 - 0.1 ln 0.1; a class without images adds nothing.
    wanted = -0.9 * math.log(0.9) - 0.1 * math.log(0.1)
    assert float(schedule.chance_loss(jnp.array([90, 10, 0]), 3)) == pytest.approx(wanted, rel=1e-6)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=6).filter(any), st.data())
def test_no_constant_answer_beats_chance(counts, data):
    answer = np.array(data.draw(st.lists(st.floats(0.01, 1), min_size=len(counts), max_size=len(counts))))
    loss = -np.average(np.log(answer / answer.sum()), weights=counts)
    assert loss >= float(schedule.chance_loss(jnp.array(counts), len(counts))) - 1e-5


def left_at(losses, num_classes=10, chance=None):
    state = schedule.initial(num_classes)
    for step, loss in enumerate(losses, 1):
        state = STEP(state, loss, step, chance or math.log(num_classes))
    return int(state.left_chance)


def test_leaving_chance_is_seen_in_the_running_mean():
    # From ln 10 towards 1: the mean is 1 + 1.302585 x 0.95^n; it is below 0.95 ln 10 = 2.187456 once
    # 0.95^n < 0.911612, that is n > 1.804.
    assert left_at([math.log(10)] * 30 + [1.0] * 10) == 32
    assert left_at([math.log(10)] * 500) == 0
    # One batch with a loss of 0 moves the mean by exactly 5%, which is not below.
    assert left_at([math.log(10)] * 5 + [0.01] + [math.log(10)] * 5) == 0


def test_the_step_that_left_chance_stays():
    assert left_at([1.0] * 5 + [9.0] * 50) == 2


def test_uneven_classes_are_not_learning():
    # A network that has only learned that 9 of 10 images are of one class has the entropy as its loss.
    chance = float(schedule.chance_loss(jnp.array([90, 10]), 2))
    assert left_at([chance] * 500, num_classes=2, chance=chance) == 0
    assert left_at([chance] * 500, num_classes=2) > 0  # as it would look against ln 2
