"""Training (paper, section 5): the recipe, the state, and one step."""

import dataclasses
import functools
import math

import flax.struct
import jax
import jax.numpy as jnp
import optax
from jax import lax
from jax.sharding import PartitionSpec as P

from alexnet_jax import architectures, augment, networks, optimizer, towers
from alexnet_jax.architectures import Conv, Dense
from alexnet_jax.config import UsageError
from alexnet_jax.data.statistics import Statistics
from alexnet_jax.evaluate import cross_entropy
from alexnet_jax.model import AlexNet, param_specs


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


@dataclasses.dataclass(frozen=True)
class Recipe:
    """All that does not change in training; static to the compiler."""

    network: AlexNet
    seed: int
    mean_at: augment.MeanAt
    crop: bool
    flip: bool
    group: int  # examples in a row that share their crop and their flip
    pca_std: float
    pca_scale: str
    pca_rescale: bool
    pca_steps: int  # without colours after so many; 0: with them to the end
    accumulate: int  # parts of a batch, one after the other
    learning_rate: float
    warmup_steps: int
    schedule: tuple[tuple[int, str, float], ...]  # from this step on, this layer or "*" has this rate
    momentum: float
    weight_decay: float
    update_rule: optimizer.Rule
    plateau: tuple[tuple[str, float], ...]  # arguments of optimizer.plateau_schedule

    @classmethod
    def from_config(cls, config, num_classes: int, examples: int, placement: towers.Placement) -> "Recipe":
        """The recipe that a config describes, for a training set, on a placement that `place` made for it.

        Raises:
          UsageError: if the architecture does not take this number of classes.
        """
        try:
            architecture = architectures.with_classes(networks.named(config.architecture), num_classes)
        except ValueError as error:
            raise UsageError(str(error).replace("the output layer", f"{config.architecture}'s output layer")) from error
        architectures.check(architecture)
        choices = dict(config.augment)
        scale = config.batch_size / (config.rate_batch_size or config.batch_size)

        def steps(epochs):
            return round(epochs * examples / config.batch_size)

        return cls(
            network=AlexNet(architecture, dtype=jnp.dtype(config.dtype), placement=placement),
            seed=config.seed,
            mean_at=config.mean_at,
            pca_steps=math.ceil(choices.pop("pca_epochs") * examples / config.batch_size),
            **choices,
            accumulate=config.accumulate,
            learning_rate=scale * config.learning_rate,
            warmup_steps=steps(config.warmup_epochs),
            schedule=tuple((steps(epoch), layer, scale * rate) for epoch, layer, rate in config.schedule),
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            update_rule=config.update_rule,
            plateau=tuple(config.plateau.items()),
        )

    def key(self, use: str) -> jax.Array:
        """The random key for "init", "augment" or "dropout"."""
        return jax.random.split(jax.random.key(self.seed), 3)[("init", "augment", "dropout").index(use)]

    def rule(self, rate=1.0, bias_rate=1.0) -> optax.GradientTransformation:
        """The update rule at rates, which its state does not depend on."""
        return optimizer.update_rule(
            self.update_rule, rate, bias_rate=bias_rate, momentum=self.momentum, weight_decay=self.weight_decay
        )

    def rate(self, state: TrainState, layer: str = "*"):
        """The learning rate of a layer's kernels in the step that follows a state; "*": of those not named."""
        rate = self.learning_rate
        for name in dict.fromkeys(("*", layer)):
            for step, scheduled, value in self.schedule:
                if scheduled == name:
                    rate = jnp.where(state.step >= step, value, rate)
        return rate * optimizer.warmup(self.warmup_steps)(state.step) * state.schedule.scale

    def bias_rate(self, state: TrainState, layer: str):
        """The learning rate of a layer's biases.

        The 2012 program's is set once and for all: its notes have only the rates of weights
        drop, and its files end with 0.02 beside 0.00001.
        """
        rate = self.rate(state, layer)
        if self.update_rule != "source2012":
            return rate
        warm = optimizer.warmup(self.warmup_steps)(state.step)
        return jnp.where(rate == 0, 0.0, optimizer.BIAS * self.learning_rate * warm)


def place(config, batches: tuple[str, ...]) -> towers.Placement:
    """The placement that a config asks for, over all devices.

    Args:
      config: ConfigDict as in configs/alexnet.py.
      batches: fields of the config that hold the size of a batch.

    Raises:
      UsageError: if the towers, the devices or one of the batches do not divide.
    """
    architecture = networks.named(config.architecture)
    try:
        placement = towers.place(architecture, config.mesh.placement, config.mesh.tower)
        for name in batches:
            parts = config.accumulate if name == "batch_size" else 1
            placement.check_batch(f"config.{name}", config[name], parts)
    except ValueError as error:
        raise UsageError(str(error).replace("the architecture", config.architecture)) from error
    return placement


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
        schedule=optimizer.plateau_schedule(**dict(recipe.plateau)).init(params),
    )
    return lax.with_sharding_constraint(state, state_shardings(state, recipe))


def changes(before: architectures.Architecture, now: architectures.Architecture) -> str:
    """Where a pretrained network differs from what begins with its weights, but for the last layer, in words."""

    def of(architecture):  # what weights are drawn from does not matter here
        return {
            name: dataclasses.replace(layer, std=0.0, bias=0.0) if isinstance(layer, Conv | Dense) else layer
            for name, layer in zip(architectures.layer_names(architecture)[:-1], architecture[:-1], strict=True)
        }

    theirs, ours = of(before), of(now)
    names = [name for name in dict.fromkeys([*theirs, *ours]) if theirs.get(name) != ours.get(name)]
    return "; ".join(
        f"{name} is {theirs.get(name, 'nothing')} there, {ours.get(name, 'nothing')} here" for name in names
    )


def check_pretrained(params, recipe: Recipe) -> None:
    """Raises UsageError unless pretrained parameters have each layer of the recipe's network but the last."""
    like = jax.eval_shape(functools.partial(init_state, recipe=recipe)).params
    for layer in _copied(recipe):
        wanted = {name: a.shape for name, a in like[layer].items()}
        found = {name: a.shape for name, a in params.get(layer, {}).items()}
        if found != wanted:
            raise UsageError(
                f"config.pretrained has {found or 'nothing'} for {layer}; accepted is {wanted}. Only the last layer "
                "may differ: set --config.architecture to that of the pretrained network, or give another file."
            )


def copy_pretrained(state: TrainState, params, recipe: Recipe) -> TrainState:
    """A state with the parameters of a pretrained network in each layer but the last, which stays as it was drawn.

    Args:
      state: as init_state made it.
      params: tree of float32 NumPy arrays that check_pretrained accepts.
      recipe: of the run.
    """
    placement, specs = recipe.network.placement, param_specs(recipe.network)
    copied = {layer: jax.tree.map(placement.put_whole, params[layer], specs[layer]) for layer in _copied(recipe)}
    return state.replace(params=state.params | copied)


def _copied(recipe):
    """The layers that a pretrained network gives."""
    architecture = recipe.network.architecture
    last = architectures.layer_names(architecture)[-1]
    return [layer for layer in architectures.weighted(architecture) if layer != last]


def state_shardings(state: TrainState, recipe: Recipe) -> TrainState:
    """The sharding of each array of a state: the velocity lies with the weights, the rest on every device."""
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
      state: donated.
      batch: image (N, S, S, 3) uint8, label (N,) int32, index (N,) uint32; N as the placement spreads it.
      statistics: of the training set.
      recipe: static.

    Returns:
      The next state, and metrics: loss in nats, error (top-1, in %), learning_rate, and
      gradient_squares (T,), the sum of the squared gradients of each tower.
    """
    placement, specs = recipe.network.placement, param_specs(recipe.network)
    gradients, loss, error = towers.spread(
        functools.partial(_gradients_on_device, recipe),
        placement.mesh,
        in_specs=(specs, placement.batch, P(), P()),
        out_specs=(specs, P(), P()),
    )(state.params, batch, statistics, state.step)
    # From here on arrays are whole again, and the compiler sees to it that each device updates what it has.
    rates, bias_rates = ({layer: f(state, layer) for layer in state.params} for f in (recipe.rate, recipe.bias_rate))
    updates, opt_state = recipe.rule(rates, bias_rates).update(gradients, state.opt_state, state.params)
    metrics = {
        "loss": loss,
        "error": error,
        "learning_rate": recipe.rate(state),
        "gradient_squares": sum(jnp.square(g).sum(range(1, g.ndim)) for g in jax.tree.leaves(gradients)),
    }
    params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state)
    return lax.with_sharding_constraint(state, state_shardings(state, recipe)), metrics


@jax.jit
def gradient_norm(gradient_squares):
    """The gradient's norm over all towers; kept out of the step, in which the paper's towers do not talk for this."""
    return jnp.sqrt(gradient_squares.sum())


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
            # The batch's loss is the sum over all devices of what each of them differentiates.
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
    """The gradients' sum, and the mean loss and error, over equal parts of a batch, one after the other."""
    batch = jax.tree.map(lambda a: a.reshape(parts, -1, *a.shape[1:]), batch)
    one = jax.eval_shape(of_part, jax.tree.map(lambda a: a[0], batch))
    zeros = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), one)
    # A loop needs the memory of one part. XLA's CPU compiler is 40 times slower at a convolution's weight gradient
    # inside of one (jax 0.10.2), so there the parts are written out: as fast as one, but no smaller.
    unroll = parts if jax.default_backend() == "cpu" else 1
    (gradients, loss, error), _ = lax.scan(
        lambda sums, part: (jax.tree.map(jnp.add, sums, of_part(part)), None), zeros, batch, unroll=unroll
    )
    return gradients, loss / parts, error / parts


def augmented(recipe: Recipe, batch, statistics: Statistics, step):
    """Crop, flip, mean and colour of each picture, by numbers drawn from its index (or its group's) alone.

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
        image = augment.random_crop(crop, image, size) if recipe.crop else augment.center_crop(image, size)
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
def adjust_rate(state: TrainState, error, *, recipe: Recipe) -> optax.contrib.ReduceLROnPlateauState:
    """The schedule after one more validation error (in %)."""
    _, schedule = optimizer.plateau_schedule(**dict(recipe.plateau)).update({}, state.schedule, value=error)
    return schedule
