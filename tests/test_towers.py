"""The network on several devices: the same numbers, half of the memory, and no more talk than in the paper.

On fake devices of the CPU by default; on real ones by `JAX_PLATFORMS=cuda python -m pytest -m devices`.
"""

import dataclasses
import math
import re

import jax
import numpy as np
import pytest
from tiny import TINY, batch_of, place, put, recipe_of, run, statistics_of

from alexnet_jax import (
    LENET5,
    LRN,
    PAPER,
    QUICKSTART,
    SLIDES,
    AlexNet,
    Conv,
    Dense,
    Flatten,
    Input,
    Local,
    ReLU,
    SameMapLRN,
    replace,
    with_classes,
)
from alexnet_jax.evaluation.errors import count_errors
from alexnet_jax.network import towers
from alexnet_jax.network.model import param_specs
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.step import init_state, state_shardings, train_step

pytestmark = [pytest.mark.devices, pytest.mark.filterwarnings("ignore:Some donated buffers:UserWarning")]

PLACEMENTS = {
    "1x2": (2, 2, "towers"),
    "2x1": (2, 1, "towers"),
    "2x2": (4, 2, "towers"),
    "4x2": (8, 2, "towers"),
    "8x1": (8, 1, "towers"),
    "weird trick on 2": (2, 1, "weird_trick"),
    "weird trick on 4": (4, 1, "weird_trick"),
    "weird trick on 8": (8, 1, "weird_trick"),
}
each_placement = pytest.mark.parametrize("where", PLACEMENTS.values(), ids=PLACEMENTS)
# For the network of the paper, which takes a minute for five steps: every kind of placement once.
FOR_PAPER = {name: PLACEMENTS[name] for name in ("1x2", "2x2", "weird trick on 4")}
each_placement_for_paper = pytest.mark.parametrize("where", FOR_PAPER.values(), ids=FOR_PAPER)


@pytest.fixture(autouse=True)
def exact_products():
    """Accelerators multiply float32 in fewer bits unless told otherwise."""
    with jax.default_matmul_precision("highest"):
        yield


def numbers(state):
    """Parameters and velocity, by name."""
    leaves = jax.tree_util.tree_leaves_with_path((state.params, state.opt_state))
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_close(got, want, tolerance):
    """Every array to `tolerance` of its largest number."""
    assert got.keys() == want.keys()
    for name, a in want.items():
        np.testing.assert_allclose(got[name], a, rtol=0, atol=tolerance * np.abs(a).max(), err_msg=name)


def assert_equal(got, want):
    for name, a in want.items():
        np.testing.assert_array_equal(got[name], a, err_msg=name)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("rule", "where"),
    [
        *(("decoupled", where) for where in ("1x2", "4x2", "weird trick on 4")),
        *(slow("decoupled", where) for where in ("2x2", "2x1", "8x1", "weird trick on 2", "weird trick on 8")),
        *(slow("lars", "2x2"), slow("lars", "weird trick on 4")),
    ],
)
def test_a_small_network_trains_the_same_wherever_it_is(where, rule):
    want, want_losses = run(recipe_of(place(), update_rule=rule))
    got, losses = run(recipe_of(place(*PLACEMENTS[where]), update_rule=rule))
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_close(numbers(got), numbers(want), 1e-5)


JOINED = replace(TINY, LRN, sees="all")
SOURCE = (*TINY[:3], SameMapLRN(n=3, alpha=0.1), *TINY[3:])


@pytest.mark.parametrize(
    ("architecture", "where"),
    [
        *((JOINED, "1x2"), slow(JOINED, "2x2"), slow(JOINED, "weird trick on 4")),
        *(slow(SOURCE, "2x2"), slow(SOURCE, "1x2"), slow(SOURCE, "weird trick on 4")),
    ],
)
def test_norms_are_the_same_wherever_the_towers_are(architecture, where):
    want, want_losses = run(recipe_of(place(architecture=architecture), architecture), stop=3)
    got, losses = run(recipe_of(place(*PLACEMENTS[where], architecture), architecture), stop=3)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_close(numbers(got), numbers(want), 1e-5)
    _, without_them = run(recipe_of(place()), stop=3)
    assert without_them != pytest.approx(want_losses, rel=1e-5)


LENET = with_classes((Input(12, channels=1), *LENET5[1:5], Flatten(), *LENET5[-3:]), 5)


LOCAL = (*TINY[:5], Local(8, 3, padding=1, sees="all", std=0.1), *TINY[6:])


@pytest.mark.parametrize("where", ["1x2", slow("2x2"), slow("weird trick on 4")])
def test_a_locally_connected_layer_is_the_same_on_several_devices(where):
    want, want_losses = run(recipe_of(place(architecture=LOCAL), LOCAL), stop=3)
    got, losses = run(recipe_of(place(*PLACEMENTS[where], LOCAL), LOCAL), stop=3)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_close(numbers(got), numbers(want), 1e-5)


@pytest.mark.parametrize("where", [slow("2x1"), "weird trick on 4"])
def test_lenet_s_layers_are_the_same_on_several_devices(where):
    want, want_losses = run(recipe_of(place(architecture=LENET), LENET, learning_rate=1e-4), stop=3)
    got, losses = run(recipe_of(place(*PLACEMENTS[where], LENET), LENET, learning_rate=1e-4), stop=3)
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_close(numbers(got), numbers(want), 1e-5)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators choose other sums for other shapes")
def test_two_towers_on_two_devices_are_to_the_bit_what_they_are_on_one():
    want, want_losses = run(recipe_of(place(architecture=QUICKSTART), QUICKSTART))
    got, losses = run(recipe_of(place(2, 2, architecture=QUICKSTART), QUICKSTART))
    assert losses == want_losses
    assert_equal(numbers(got), numbers(want))


@pytest.fixture(scope="module")
def paper_on_one_device():
    """Five steps of PAPER in float64, on the host."""
    return _five_steps_in_float64(place(architecture=PAPER))


def _five_steps_in_float64(placement):
    if jax.default_backend() == "tpu":
        pytest.skip("a TPU has no float64 convolutions")
    recipe = recipe_of(placement, PAPER, np.float64)
    with jax.enable_x64(True):
        state = init_state(recipe=recipe)  # float32
        exact = jax.tree.map(lambda a: a.astype(np.float64) if a.size > 1 else a, (state.params, state.opt_state))
        state, losses = run(recipe, state=state.replace(params=exact[0], opt_state=exact[1]))
        return numbers(state), losses


@pytest.mark.slow
@pytest.mark.long
@each_placement_for_paper
def test_five_steps_of_the_paper_s_network_are_the_same_wherever_it_is(where, paper_on_one_device):
    want, want_losses = paper_on_one_device
    got, losses = _five_steps_in_float64(place(*where, architecture=PAPER))
    np.testing.assert_allclose(losses, want_losses, rtol=1e-6)
    assert {a.dtype for a in want.values() if a.size > 1} == {np.dtype("float64")}
    assert_close(got, want, 1e-6)


@pytest.fixture(scope="module")
def paper_in_float32():
    """PAPER's losses and the state after one step and after five, on one device."""
    recipe = recipe_of(place(architecture=PAPER), PAPER)
    first, loss = run(recipe, stop=1)
    after_one = numbers(first)
    state, losses = run(recipe, 1, 5, first)
    return after_one, numbers(state), loss + losses


@pytest.mark.slow
@pytest.mark.long
@each_placement_for_paper
def test_float32_is_as_close_as_its_rounding_allows(where, paper_in_float32):
    want, after_five, want_losses = paper_in_float32
    recipe = recipe_of(place(*where, architecture=PAPER), PAPER)
    state, loss = run(recipe, stop=1)
    got = numbers(state)
    state, losses = run(recipe, 1, 5, state)
    np.testing.assert_allclose(loss + losses, want_losses, rtol=1e-5)
    # Without kinks, the gradients would differ by some 1e-6. But now and then rounding makes another pixel of a window
    # the largest, or carries a unit across ReLU's kink: one in conv5 is 2e-3 of the gradient of conv1. One device is as
    # far from float64, with XLA's own convolutions too.
    for name, a in ((name, a) for name, a in want.items() if "trace" in name):  # velocity: the rate times the gradient
        assert np.linalg.norm(got[name] - a) <= 1e-2 * np.linalg.norm(a), name
    if where == PLACEMENTS["1x2"] and jax.default_backend() == "cpu":
        assert loss + losses == want_losses
        # All but the gradient of fc8's bias, which each device adds up in an order of its own.
        assert_equal(numbers(state), {name: a for name, a in after_five.items() if "['fc8']['bias']" not in name})


ALL = {"1x1": (1, 1, "towers"), **PLACEMENTS}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (before, after)
        if before in ("1x1", "2x2") and after in ("1x1", "2x2", "weird trick on 4")
        else slow(before, after)
        for before in ALL
        for after in ALL
    ],
)
def test_a_checkpoint_of_one_placement_resumes_on_every_other(before, after, tmp_path):
    want, want_losses = run(recipe_of(place()), stop=6)
    state, losses = run(recipe_of(place(*ALL[before])), stop=3)
    written = numbers(state)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state, error=None, notes={})
    recipe = recipe_of(place(*ALL[after]))
    with Checkpoints(tmp_path) as checkpoints:
        state, _ = checkpoints.restore(3, abstract_state(recipe))
    assert_equal(numbers(state), written)
    state, more = run(recipe, 3, 6, state)
    np.testing.assert_allclose(losses + more, want_losses, rtol=1e-5)
    assert_close(numbers(state), numbers(want), 1e-5)


# Memory


def bytes_on_each_device(tree):
    return sum(math.prod(a.sharding.shard_shape(a.shape)) * a.dtype.itemsize for a in jax.tree.leaves(tree))


def abstract_state(recipe):
    state = jax.eval_shape(lambda: init_state(recipe=recipe))
    shardings = state_shardings(state, recipe)
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), state, shardings)


def test_each_of_two_devices_holds_half_of_parameters_and_velocity():
    state = abstract_state(recipe_of(place(2, 2, architecture=PAPER), PAPER))
    assert bytes_on_each_device(state.params) == 4 * 60_965_224 // 2
    assert bytes_on_each_device(state.opt_state) == 4 * 60_965_224 // 2


def test_the_arrays_of_a_step_lie_where_the_shardings_say():
    recipe = recipe_of(place(2, 2))
    state, _ = run(recipe, stop=1)
    for a, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(state_shardings(state, recipe)), strict=True):
        assert a.sharding.is_equivalent_to(wanted, a.ndim)
    for a in jax.tree.leaves((state.params, state.opt_state)):
        assert [shard.data.nbytes for shard in a.addressable_shards] == [a.nbytes // 2] * 2


def test_the_weird_trick_splits_the_dense_layers_over_all_devices():
    state = abstract_state(recipe_of(place(8, 1, "weird_trick", PAPER), PAPER))
    for name, layer in state.params.items():
        parts = 8 if name.startswith("fc") else 1
        assert bytes_on_each_device(layer) * parts == 4 * sum(a.size for a in layer.values()), name


def test_a_dense_layer_that_does_not_divide_stays_whole():
    placement = place(8, 1, "weird_trick")
    fc3, fc4, fc5 = (layer for layer in TINY if isinstance(layer, Dense))
    assert [placement.splits(layer, 2) for layer in (fc3, fc4, fc5)] == [True, True, False]  # 8, 8 and 3 in a tower
    assert not placement.splits(dataclasses.replace(fc3, sees="own"), 2)


# Talk


def compiled(recipe, n=16):
    size = recipe.network.architecture[0].size + 4
    batch = batch_of(0, size, n=n)
    sharding = recipe.network.placement.sharding(recipe.network.placement.batch)
    batch = {name: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=sharding) for name, a in batch.items()}
    state = abstract_state(recipe)
    return train_step.lower(state, batch, statistics_of(size), recipe=recipe).compile().as_text()


KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute|collective-broadcast|ragged-all-to-all"


def talk(program):
    """(kind, devices that talk, shapes, where) of each collective in a compiled program."""
    found = []
    for line in program.splitlines():
        if match := re.search(rf"= (.*?) ({KINDS}|send|recv)(?:-start)?\(", line):
            result, kind = match.groups()
            shapes = re.findall(r"f32(\[[\d,]*\])", result)
            groups = re.search(r"replica_groups=(\{\{.*?\}\}|\[.*?\]<=\[.*?\](?:T\(.*?\))?)", line)
            where = re.search(r'op_name="[^"]*?(transpose\(jvp\(AlexNet\)\)|jvp\(AlexNet\))/(\w+)/', line)
            found.append((kind, groups and groups[1], shapes, where and where[2]))
    return found


def expected_between_towers(n):
    """The paper's joins, forward and backward, for n images on a device."""
    joins = {
        "into_conv3": (13, 13, 256), "into_fc6": (9216,), "into_fc7": (4096,), "into_fc8": (4096,),
        "into_logits": (1000,),
    }  # fmt: skip
    halves = {where: (*shape[:-1], shape[-1] // 2) for where, shape in joins.items()}
    text = lambda shape: "[" + ",".join(map(str, (n, *shape))) + "]"  # noqa: E731
    return {("all-gather", text(shape), where) for where, shape in joins.items()} | {
        ("reduce-scatter", text(shape), where) for where, shape in halves.items()
    }


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the program is the CPU compiler's")
def test_two_towers_talk_where_the_paper_says_and_nowhere_else():
    found = talk(compiled(recipe_of(place(2, 2, architecture=PAPER), PAPER)))
    assert len(found) == 10
    assert {groups for _, groups, _, _ in found} == {"{{0,1}}"}
    assert {(kind, shape, where) for kind, _, (shape,), where in found} == expected_between_towers(16)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the program is the CPU compiler's")
@pytest.mark.slow
def test_of_four_devices_the_towers_talk_in_pairs_and_the_gradients_go_over_data():
    found = talk(compiled(recipe_of(place(4, 2, architecture=PAPER), PAPER)))
    towers_, data = [f for f in found if f[1] == "{{0,1},{2,3}}"], [f for f in found if f[1] == "{{0,2},{1,3}}"]
    assert len(towers_) + len(data) == len(found)
    assert {(kind, shape, where) for kind, _, (shape,), where in towers_} == expected_between_towers(8)
    assert {kind for kind, *_ in data} == {"all-reduce"}
    state = abstract_state(recipe_of(place(4, 2, architecture=PAPER), PAPER))
    gradients = [a.sharding.shard_shape(a.shape) for a in jax.tree.leaves(state.params)]
    wanted = ["[" + ",".join(map(str, shape)) + "]" for shape in gradients] + ["[]", "[]"]  # loss and error
    assert sorted(shape for _, _, shapes, _ in data for shape in shapes) == sorted(wanted)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="the program is the CPU compiler's")
def test_one_device_talks_to_nobody():
    assert talk(compiled(recipe_of(place()))) == []


# Pieces


@each_placement
def test_evaluation_counts_the_same_wherever_it_is(where):
    architecture = with_classes(TINY, 8)  # which the weird trick splits to the end
    batch = {k: v for k, v in batch_of(0).items() if k != "index"} | {"mask": np.arange(8) < 7}

    def count(placement):
        recipe = recipe_of(placement, architecture)
        params = init_state(recipe=recipe).params
        network, mean = recipe.network, statistics_of().mean_image
        return jax.device_get(count_errors(params, put(batch, recipe), mean, network=network, views=10))

    want, got = count(place(architecture=architecture)), count(place(*where, architecture=architecture))
    assert want["examples"] == got["examples"] == 7
    assert (got["top1_wrong"], got["top5_wrong"]) == (want["top1_wrong"], want["top5_wrong"])
    assert got["loss"] == pytest.approx(want["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("where", "backend"),
    [
        *(((2, 2, "towers"), "gpu"), slow((1, 1, "towers"), "cpu")),
        *(slow((2, 2, "towers"), "cpu"), slow((4, 1, "weird_trick"), "cpu")),
    ],
)
def test_a_batch_in_parts_takes_the_same_step(where, backend, monkeypatch):
    want, want_losses = run(recipe_of(place()))
    monkeypatch.setattr(jax, "default_backend", lambda: backend)  # the parts written out, or a loop
    train_step.clear_cache()
    got, losses = run(recipe_of(place(*where), accumulate=2))
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_close(numbers(got), numbers(want), 1e-5)


def test_a_dense_layer_of_its_own_tower_follows_one_that_is_split():
    network = (
        Input(4, towers=2), Conv(4, 3, std=0.3), Flatten(), Dense(16, std=0.3), ReLU(),
        Dense(8, sees="own", std=0.3), ReLU(), Dense(6, std=0.3),
    )  # fmt: skip
    want, want_losses = run(recipe_of(place(architecture=network), network))
    got, losses = run(recipe_of(place(4, 1, "weird_trick", network), network))
    np.testing.assert_allclose(losses, want_losses, rtol=1e-5)
    assert_close(numbers(got), numbers(want), 1e-5)


@pytest.mark.parametrize(
    ("kind", "tower", "devices", "architecture", "shape"),
    [
        ("towers", 2, 8, PAPER, (4, 2)),
        ("towers", 1, 8, SLIDES, (8, 1)),
        ("weird_trick", 1, 8, PAPER, (4, 2)),
        ("weird_trick", 1, 3, PAPER, (3, 1)),
        ("weird_trick", 1, 8, SLIDES, (8, 1)),
    ],
)
def test_the_mesh_follows_from_towers_and_devices(kind, tower, devices, architecture, shape):
    assert towers.mesh_shape(architecture, kind, tower, devices) == shape


@pytest.mark.parametrize("tower", [0, 3])
def test_towers_that_an_architecture_does_not_have_are_refused(tower):
    with pytest.raises(ValueError, match=rf"mesh\.tower is {tower}, but the architecture has 2 tower"):
        towers.mesh_shape(PAPER, "towers", tower, 6)


def test_devices_that_do_not_divide_are_refused():
    with pytest.raises(ValueError, match=r"mesh\.tower is 2, but there are 3 devices"):
        towers.mesh_shape(PAPER, "towers", 2, 3)


def test_a_network_called_by_itself_needs_no_devices():
    images = np.ones((2, 12, 12, 3), np.float32)
    alone = AlexNet(TINY)
    variables = alone.init(jax.random.key(0), images)
    placed = AlexNet(TINY, placement=place(2, 2))
    specs = {"params": param_specs(placed)}
    apply = towers.spread(placed.apply, placed.placement.mesh, (specs, placed.placement.batch), placed.placement.batch)
    np.testing.assert_allclose(jax.jit(apply)(variables, images), alone.apply(variables, images), rtol=1e-5)
