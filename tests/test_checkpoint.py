"""Checkpoints: what is kept, what is written, and that nothing else is restored."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import SingleDeviceSharding

from alexnet_jax.errors import UsageError
from alexnet_jax.training.checkpoint import Checkpoints


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict


def state_at(step, shape=(4, 3), **more):
    return State(jnp.int32(step), {"fc8": {"kernel": jnp.full(shape, step, jnp.float32), **more}})


def like(state):
    here = SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=here), state)


def save_all(workdir, errors):
    with Checkpoints(workdir) as checkpoints:
        for step, error in errors.items():
            checkpoints.save(state_at(step), error=error, notes={"seconds": step / 2})


def test_best_and_last_are_kept_and_no_others(tmp_path):
    save_all(tmp_path, {1: 5.0, 2: 3.0, 3: None, 4: 3.5, 5: None})
    assert {int(p.name) for p in (tmp_path / "checkpoints").iterdir()} == {2, 5}
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.step_of("best") == 2
        assert checkpoints.step_of("last") == checkpoints.latest_step() == 5


def test_state_and_notes_come_back_to_the_bit(tmp_path):
    save_all(tmp_path, {7: 1.0})
    with Checkpoints(tmp_path) as checkpoints:
        state, notes = checkpoints.restore(7, like(state_at(0)))
    assert int(state.step) == 7
    np.testing.assert_array_equal(state.params["fc8"]["kernel"], np.full((4, 3), 7.0, np.float32))
    assert notes == {"seconds": 3.5}


def test_a_state_may_be_donated_as_soon_as_save_returns(tmp_path):
    @functools.partial(jax.jit, donate_argnums=0)
    def advance(state):
        return jax.tree.map(lambda a: a + 1, state)

    state = state_at(1, shape=(2000, 2000))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, error=1.0, notes={})
        for _ in range(20):
            state = advance(state)
        jax.block_until_ready(state)
    with Checkpoints(tmp_path) as checkpoints:
        restored, _ = checkpoints.restore(1, like(state_at(0, shape=(2000, 2000))))
    assert np.all(np.asarray(restored.params["fc8"]["kernel"]) == 1)


@pytest.mark.parametrize(
    "expected",
    [state_at(0, shape=(4, 5)), state_at(0, bias=jnp.zeros(3)), State(jnp.int32(0), {}), state_at(jnp.float16(0))],
    ids=["other shape", "one array more", "one array less", "same"],
)
def test_another_structure_is_refused_by_name(tmp_path, expected, request):
    save_all(tmp_path, {3: 1.0})
    with Checkpoints(tmp_path) as checkpoints:
        if request.node.callspec.id == "same":
            checkpoints.restore(3, like(expected))
            return
        with pytest.raises(UsageError, match=r"another network: it has .* for params/fc8/(kernel|bias)"):
            checkpoints.restore(3, like(expected))


def test_no_checkpoint_is_an_error_that_says_so(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.latest_step() is None
        for which in ("last", "best"):
            with pytest.raises(UsageError, match="holds no checkpoint"):
                checkpoints.step_of(which)
