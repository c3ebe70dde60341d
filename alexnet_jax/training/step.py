"""One step of training (paper, section 5), as pure functions: the state, the loss, the gradient, the update."""

import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax.network import towers
from alexnet_jax.network.model import param_specs
from alexnet_jax.training import augment, schedule
from alexnet_jax.training.recipe import Recipe
from alexnet_jax.training.schedule import ScheduleState
from alexnet_jax.training.statistics import Statistics


@flax.struct.dataclass
class TrainState:
    """All that changes in training.

    step: () int32, steps done. params: tree of float32, towers first. opt_state: the velocity.
    schedule: state of the learning rate's schedule, whose `scale` multiplies the rate.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    schedule: ScheduleState


@flax.struct.dataclass
class Examples:
    """A whole training set on every device: image (E, S, S, 3) uint8, label (E,) int32."""

    image: jax.Array
    label: jax.Array


@functools.partial(jax.jit, static_argnames="recipe")
def init_state(*, recipe: Recipe) -> TrainState:
    """The state before the first step; the same numbers on every placement."""
    whole = recipe.network.clone(placement=towers.ONE_DEVICE)
    size, channels = whole.architecture[0].size, whole.architecture[0].channels
    params = whole.init(recipe.key("init"), jnp.zeros((1, size, size, channels)))["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=recipe.rule().init(params),
        schedule=schedule.initial(whole.architecture[-1].units),
    )
    return lax.with_sharding_constraint(state, state_shardings(state, recipe))


def state_shardings(state: TrainState, recipe: Recipe) -> TrainState:
    """The sharding of each array of a state: the velocity is placed like the weights, the rest on every device."""
    placement = recipe.network.placement
    params = jax.tree.map(placement.sharding, param_specs(recipe.network), is_leaf=lambda x: isinstance(x, P))
    everywhere = jax.tree.map(lambda _: placement.sharding(P()), state)
    opt_state = optax.tree.map_params(
        recipe.rule(), lambda _, s: s, state.opt_state, params, transform_non_params=lambda _: placement.sharding(P())
    )
    return everywhere.replace(params=params, opt_state=opt_state)


@functools.partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def train_step(state: TrainState, batch, statistics: Statistics, *, recipe: Recipe):
    """One step of gradient descent.

    Args:
      state: the current state; donated.
      batch: image (N, S, S, 3) uint8, label (N,) int32, index (N,) uint32; the placement splits N over devices.
      statistics: of the training set.
      recipe: static.

    Returns:
      The next state, and metrics: loss in nats, error (top-1, in %), learning_rate, left_chance (the state's), and
      gradient_squares (T,), the sum of the squared gradients of each tower.
    """
    placement, specs = recipe.network.placement, param_specs(recipe.network)
    gradients, loss, error = towers.spread(
        functools.partial(_gradients_on_device, recipe),
        placement.mesh,
        in_specs=(specs, placement.batch, P(), P()),
        out_specs=(specs, P(), P()),
    )(state.params, batch, statistics, state.step)
    # From here on, arrays are global again, and the compiler makes each device update its own part.
    rates, bias_rates = ({layer: f(state, layer) for layer in state.params} for f in (recipe.rate, recipe.bias_rate))
    updates, opt_state = recipe.rule(rates, bias_rates).update(gradients, state.opt_state, state.params)
    last = recipe.network.architecture[-1]
    chance = schedule.chance_loss(statistics.label_counts, last.units)
    # The loss of an RBF layer has another scale: there the error takes its place, relative to that of guessing.
    learned = chance * error / (100 - 100 / last.units) if hasattr(last, "rubbish") else loss
    plan = schedule.after_step(state.schedule, learned, state.step + 1, chance)
    metrics = {
        "loss": loss,
        "error": error,
        "learning_rate": recipe.rate(state),
        "left_chance": plan.left_chance,
        "gradient_squares": sum(jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(gradients)),
    }
    params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, schedule=plan)
    return lax.with_sharding_constraint(state, state_shardings(state, recipe)), metrics


@functools.partial(jax.jit, static_argnames="placement")
def take(examples: Examples, chosen, *, placement: towers.Placement):
    """The batch of some examples: row (N,) int32, their numbers in the training set; index as in train_step."""
    rows = chosen["row"]
    image, label = (array.at[rows].get(mode="promise_in_bounds") for array in (examples.image, examples.label))
    batch = {"image": image, "label": label, "index": chosen["index"]}
    return lax.with_sharding_constraint(batch, placement.sharding(placement.batch))


@functools.partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def train_steps(state: TrainState, examples: Examples, chosen, statistics: Statistics, *, recipe: Recipe):
    """Several steps as one program: as train_step for each of the chosen batches, row and index (steps, N)."""

    def one(state, chosen):
        batch = take(examples, chosen, placement=recipe.network.placement)
        return train_step(state, batch, statistics, recipe=recipe)

    return lax.scan(one, state, chosen)


@jax.jit
def gradient_norm(gradient_squares):
    """The gradient's norm over all towers: (..., T) -> (...).

    It is computed outside the step, so that the towers need not exchange data for it: the paper's do not.
    """
    return jnp.sqrt(gradient_squares.sum(-1))


def cross_entropy(logits, labels, rubbish: float | None = None):
    """(N,) losses in nats of (N, K) logits and (N,) labels; `rubbish` as in architectures.RBF."""
    if rubbish is not None:
        logits = jnp.pad(logits, ((0, 0), (0, 1)), constant_values=-rubbish)  # (N, K + 1)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def _gradients_on_device(recipe, params, batch, statistics, step):
    """The mean loss and error of a batch, and this device's part of the gradient."""
    placement, last = recipe.network.placement, recipe.network.architecture[-1]

    def of_part(part):
        images = augmented(recipe, part, statistics, step)  # (N, H, W, 3)

        def loss_of(params):
            logits = recipe.network.apply(
                {"params": params}, images, train=True, index=part["index"], rngs={"dropout": recipe.key("dropout")}
            )  # (N, K)
            loss = cross_entropy(logits, part["label"], getattr(last, "rubbish", None)).mean()
            # The losses that the devices differentiate add up to the batch's loss.
            return loss / (placement.mesh.size * recipe.accumulate), (loss, logits)

        gradients, (loss, logits) = jax.grad(loss_of, has_aux=True)(params)
        return gradients, loss, 100 * jnp.mean(logits.argmax(-1) != part["label"])

    if recipe.accumulate == 1:
        gradients, loss, error = of_part(batch)
    else:
        gradients, loss, error = _accumulate(of_part, batch, recipe.accumulate)
    with jax.named_scope("metrics"):
        loss, error = lax.pmean((loss, error), placement.batch_axes)
    return towers.sum_gradients(gradients, param_specs(recipe.network)), loss, error


def _accumulate(of_part, batch, parts):
    """The sum of the gradients, and the mean loss and error, over equal parts of a batch, one after the other."""
    batch = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    one = jax.eval_shape(of_part, jax.tree.map(lambda a: a[0], batch))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), one)
    # A loop needs only the memory of one part. But inside a loop, XLA's CPU compiler makes a convolution's weight
    # gradient 40 times slower (jax 0.10.2). So on a CPU the loop is unrolled: this keeps the speed of one whole
    # batch, but saves no memory.
    unroll = parts if jax.default_backend() == "cpu" else 1
    (gradients, loss, error), _ = lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, of_part(part)), None), zeros, batch, unroll=unroll
    )
    return gradients, loss / parts, error / parts


def augmented(recipe: Recipe, batch, statistics: Statistics, step):
    """Crop, flip, mean and colour of each image, by random numbers that depend only on its index (or its group's).

    Args: as in train_step; step, () int32, is that of the state.

    Returns:
      (N, H, W, 3) float32, what the network sees.
    """
    size = recipe.network.architecture[0].size
    of_image, of_crop = augment.means(statistics.mean_image, size, recipe.mean_at)

    def keys(index):
        return jax.random.split(jax.random.fold_in(recipe.key("augment"), index), 3)

    def one(index, image):
        crop, flip, _ = keys(index // recipe.group)
        color = keys(index)[2]
        image = image.astype(jnp.float32) - of_image
        image = augment.crop(crop if recipe.crop else None, image, size, recipe.min_area)
        image = augment.random_flip(flip, image) if recipe.flip else image
        image -= of_crop
        if not recipe.pca_std:
            return image
        jittered = augment.pca_jitter(
            color, image, statistics.pca, recipe.pca_std, scale=recipe.pca_scale, rescale=recipe.pca_rescale
        )
        return jnp.where(step < recipe.pca_steps, jittered, image) if recipe.pca_steps else jittered

    return jax.vmap(one)(batch["index"], batch["image"])


@functools.partial(jax.jit, static_argnames="recipe")
def adjust_rate(state: TrainState, error, *, recipe: Recipe) -> ScheduleState:
    """The schedule after one more validation error (in %)."""
    return schedule.after_evaluation(state.schedule, error, state.step, **dict(recipe.plateau))
