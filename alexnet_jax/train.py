"""Training (paper, section 5): the recipe, the state, and one step."""

import dataclasses
import functools

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax import architectures, augment, optimizer, towers
from alexnet_jax.config import UsageError
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.evaluate import cross_entropy
from alexnet_jax.model import AlexNet


@flax.struct.dataclass
class TrainState:
    """All that changes in training.

    step: () int32, steps done. params: tree of float32, towers first. opt_state: the
    velocity. schedule: state of the plateau schedule, whose `scale` multiplies the rate.
    """

    step: jax.Array
    params: dict
    opt_state: optax.OptState
    schedule: optax.contrib.ReduceLROnPlateauState


STATE_SPECS = TrainState(step=P(), params=P(towers.TOWER), opt_state=P(towers.TOWER), schedule=P())


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that does not change in training; static to the compiler."""

    network: AlexNet
    mesh: jax.sharding.Mesh
    seed: int
    crop: bool
    flip: bool
    pca_std: float
    pca_scale: str
    learning_rate: float
    momentum: float
    weight_decay: float
    weight_decay_form: str
    plateau: tuple[tuple[str, float], ...]  # arguments of optimizer.plateau_schedule

    @classmethod
    def from_config(cls, config, num_classes: int, mesh: jax.sharding.Mesh) -> "Recipe":
        """The recipe that a config describes, for a number of classes, on a mesh that make_mesh made for it."""
        architecture = architectures.with_classes(architectures.NAMED[config.architecture], num_classes)
        architectures.check(architecture)
        return cls(
            network=AlexNet(architecture, dtype=jnp.dtype(config.dtype), devices=config.mesh.tower),
            mesh=mesh,
            seed=config.seed,
            **config.augment,
            learning_rate=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            weight_decay_form=config.weight_decay_form,
            plateau=tuple(config.plateau.items()),
        )

    def key(self, use: str) -> jax.Array:
        """The random key for "init", "augment" or "dropout"."""
        return jax.random.split(jax.random.key(self.seed), 3)[("init", "augment", "dropout").index(use)]

    def update_rule(self, scale=1.0) -> optax.GradientTransformation:
        """The update rule at the learning rate times `scale`."""
        return optimizer.update_rule(
            self.weight_decay_form,
            self.learning_rate * scale,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )


def make_mesh(config, batches: tuple[str, ...]) -> jax.sharding.Mesh:
    """The mesh that a config asks for, over all devices.

    Args:
      config: ConfigDict as in configs/alexnet.py.
      batches: fields of the config that hold the size of a batch.

    Raises:
      UsageError: if the towers, the devices or one of the batches do not divide.
    """
    count = architectures.towers_of(architectures.NAMED[config.architecture])
    if count % config.mesh.tower:
        raise UsageError(
            f"mesh.tower is {config.mesh.tower}, but {config.architecture} has {count} tower(s); "
            "accepted are the divisors of that number. Set --config.mesh.tower=1."
        )
    try:
        mesh = towers.make_mesh(config.mesh.tower)
    except ValueError as error:
        raise UsageError(str(error)) from error
    data = mesh.shape[towers.DATA]
    for name in batches:
        if config[name] % data:
            raise UsageError(
                f"{name} is {config[name]}; accepted are multiples of {data}, the devices that share a batch. "
                f"Set --config.{name}={-(-config[name] // data) * data}."
            )
    return mesh


@functools.partial(jax.jit, static_argnames="recipe")
def init_state(*, recipe: Recipe) -> TrainState:
    """The state before the first step; the same numbers on every mesh."""
    whole = recipe.network.clone(devices=1)
    size, channels = whole.architecture[0].size, whole.architecture[0].channels
    params = whole.init(recipe.key("init"), jnp.zeros((1, size, size, channels)))["params"]
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        opt_state=recipe.update_rule().init(params),
        schedule=optimizer.plateau_schedule(**dict(recipe.plateau)).init(params),
    )
    return lax.with_sharding_constraint(state, state_shardings(state, recipe))


def state_shardings(state: TrainState, recipe: Recipe) -> TrainState:
    """The sharding of each array of a state."""
    specs = jax.tree.map(
        lambda spec, part: jax.tree.map(lambda _: spec, part),
        STATE_SPECS, state, is_leaf=lambda x: isinstance(x, P),
    )  # fmt: skip
    return towers.shardings(recipe.mesh, specs)


@functools.partial(jax.jit, static_argnames="recipe", donate_argnums=0)
def train_step(state: TrainState, batch, statistics: Statistics, *, recipe: Recipe):
    """One step of gradient descent.

    Args:
      state: donated.
      batch: image (N, S, S, 3) uint8, label (N,) int32, index (N,) uint32; N over "data".
      statistics: of the training set.
      recipe: static.

    Returns:
      The next state, and metrics: loss in nats, error (top-1, in %), learning_rate, and
      gradient_squares, the sum of the squared gradients on each device of "tower".
    """
    metric_specs = {"loss": P(), "error": P(), "learning_rate": P(), "gradient_squares": P(towers.TOWER)}
    return towers.spread(
        functools.partial(_step_on_device, recipe),
        recipe.mesh,
        in_specs=(STATE_SPECS, P(towers.DATA), P()),
        out_specs=(STATE_SPECS, metric_specs),
    )(state, batch, statistics)


def _step_on_device(recipe, state, batch, statistics):
    images = _augment(recipe, batch, statistics)  # (N, H, W, 3)

    def loss_of(params):
        logits = recipe.network.apply(
            {"params": params}, images, train=True, index=batch["index"], rngs={"dropout": recipe.key("dropout")}
        )  # (N, K)
        loss = cross_entropy(logits, batch["label"]).mean()
        # Each device of "tower" holds the same loss, and the transpose of a join adds
        # up over them: without the division the gradient would be that many times too large.
        return loss / recipe.network.devices, (loss, logits)

    gradients, (loss, logits) = jax.grad(loss_of, has_aux=True)(state.params)
    error = 100 * jnp.mean(logits.argmax(-1) != batch["label"])
    gradients, loss, error = lax.pmean((gradients, loss, error), towers.DATA)
    updates, opt_state = recipe.update_rule(state.schedule.scale).update(gradients, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "error": error,
        "learning_rate": recipe.learning_rate * state.schedule.scale,
        "gradient_squares": optax.tree.norm(gradients, squared=True)[None],
    }
    params = optax.apply_updates(state.params, updates)
    return state.replace(step=state.step + 1, params=params, opt_state=opt_state), metrics


def _augment(recipe, batch, statistics):
    """Crop, flip, mean and colour of each picture, by numbers drawn from its index alone."""
    size = recipe.network.architecture[0].size

    def one(index, image):
        crop, flip, color = jax.random.split(jax.random.fold_in(recipe.key("augment"), index), 3)
        image = image.astype(jnp.float32) - statistics.mean_image  # before the crop: the mean at the crop's place
        image = augment.random_crop(crop, image, size) if recipe.crop else augment.center_crop(image, size)
        image = augment.random_flip(flip, image) if recipe.flip else image
        if recipe.pca_std:
            image = augment.pca_jitter(color, image, statistics.pca, recipe.pca_std, scale=recipe.pca_scale)
        return image

    return jax.vmap(one)(batch["index"], batch["image"])


@functools.partial(jax.jit, static_argnames="recipe")
def adjust_rate(state: TrainState, error, *, recipe: Recipe) -> optax.contrib.ReduceLROnPlateauState:
    """The schedule after one more validation error (in %)."""
    _, schedule = optimizer.plateau_schedule(**dict(recipe.plateau)).update({}, state.schedule, value=error)
    return schedule
