"""Fine-tuning (paper, section 6, "1 CNN*"): all layers but the last start with a trained network's parameters."""

import dataclasses
import functools

import jax

from alexnet_jax.errors import UsageError
from alexnet_jax.network import architectures
from alexnet_jax.network.architectures import Conv, Dense, Local
from alexnet_jax.network.model import param_specs
from alexnet_jax.training.recipe import Recipe
from alexnet_jax.training.step import TrainState, init_state


def changes(before: architectures.Architecture, now: architectures.Architecture) -> str:
    """The differences, in words, between a pretrained network and the new one; the last layers are not compared."""

    def of(architecture):  # initial weights do not matter here
        return {
            name: dataclasses.replace(layer, std=0.0, bias=0.0) if isinstance(layer, Conv | Local | Dense) else layer
            for name, layer in zip(architectures.layer_names(architecture)[:-1], architecture[:-1], strict=True)
        }

    theirs, ours = of(before), of(now)
    names = [name for name in dict.fromkeys([*theirs, *ours]) if theirs.get(name) != ours.get(name)]
    return "; ".join(
        f"{name} is {theirs.get(name, 'nothing')} there, {ours.get(name, 'nothing')} here" for name in names
    )


def check_pretrained(params, recipe: Recipe) -> None:
    """Raises UsageError unless pretrained parameters fit each layer of the recipe's network except the last.

    They may have no dense layer at all; then the dense layers keep their random initial values.
    """
    like = jax.eval_shape(functools.partial(init_state, recipe=recipe)).params
    for layer in _copied(recipe, params):
        wanted = {name: a.shape for name, a in like[layer].items()}
        found = {name: a.shape for name, a in params.get(layer, {}).items()}
        if found != wanted:
            raise UsageError(
                f"config.pretrained has {found or 'nothing'} for {layer}; accepted is {wanted}. Only the last layer "
                "may differ: set --config.architecture to that of the pretrained network, or give another file."
            )


def copy_pretrained(state: TrainState, params, recipe: Recipe) -> TrainState:
    """A state with a pretrained network's parameters in each layer but the last, which keeps its random initial values.

    Args:
      state: as init_state made it.
      params: tree of float32 NumPy arrays that check_pretrained accepts. Layers that it lacks keep theirs too.
      recipe: of the run.
    """
    placement, specs = recipe.network.placement, param_specs(recipe.network)
    copied = {
        layer: jax.tree.map(placement.put_whole, params[layer], specs[layer]) for layer in _copied(recipe, params)
    }
    return state.replace(params=state.params | copied)


def copied_in_words(recipe: Recipe, params) -> str:
    """Which layers are copied."""
    layers = _copied(recipe, params)
    rest = [layer for layer in architectures.weighted(recipe.network.architecture) if layer not in layers]
    return "all layers but the last" if len(rest) == 1 else f"all layers but {', '.join(rest)}"


def _copied(recipe, params):
    """The names of the layers that are copied from a pretrained network."""
    architecture = recipe.network.architecture
    *layers, _ = architectures.weighted(architecture)
    kinds = dict(zip(architectures.layer_names(architecture), architecture, strict=True))
    dense = [layer for layer in layers if isinstance(kinds[layer], Dense)]
    return layers if any(layer in params for layer in dense) else [layer for layer in layers if layer not in dense]
