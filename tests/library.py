"""The library alone: README's library block, and a training step on random images.

`python tests/library.py` runs both with nothing but what `pip install .` brings; packages of the extras are refused.
"""

import re
import sys
from pathlib import Path

README = Path(__file__).parent.parent / "README.md"
REFUSED = (
    *("tensorflow", "tensorflow_datasets", "clu", "orbax", "cv2", "matplotlib", "ml_collections", "array_record"),
    *("faiss", "gradio"),
)


def refuse():
    """Lets imports of the extras' packages fail, as where they are not installed."""
    for package in REFUSED:
        assert package not in sys.modules, f"{package} is imported already"
        sys.modules[package] = None


def readme_block():
    """The first block of Python in the README."""
    return re.search(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[1]


def train_a_step():
    """The losses before and after ten steps of the smallest network on one batch of random images."""
    import jax
    import numpy as np

    import alexnet_jax as alexnet
    from alexnet_jax.network import towers
    from alexnet_jax.training.recipe import Recipe
    from alexnet_jax.training.statistics import Statistics
    from alexnet_jax.training.step import init_state, train_step

    placement = towers.place(alexnet.LENET5, devices=jax.devices()[:1])
    recipe = Recipe(
        network=alexnet.AlexNet(alexnet.LENET5, placement=placement),
        seed=0,
        mean_at="crop",
        crop=True,
        flip=False,
        min_area=1.0,
        group=1,
        pca_std=0.0,
        pca_scale="eigenvalue",
        pca_rescale=False,
        pca_steps=0,
        accumulate=1,
        learning_rate=0.001,
        warmup_steps=0,
        end=1,
        cooldown_steps=0,
        schedule=(),
        momentum=0.9,
        weight_decay=5e-4,
        weight_decays=(),
        update_rule="paper",
        plateau=(("factor", 0.1), ("patience", 3), ("patience_steps", 1), ("drops", 3), ("threshold", 1e-3)),
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (16, 32, 32, 3), np.uint8)
    batch = {
        "image": images,
        "label": rng.integers(0, 10, 16).astype(np.int32),
        "index": np.arange(16, dtype=np.uint32),
    }
    statistics = Statistics(images.mean(0).astype(np.float32), alexnet.fit_color_pca(images))
    state, losses = init_state(recipe=recipe), []
    for _ in range(10):
        state, metrics = train_step(state, placement.put(batch, 16), statistics, recipe=recipe)
        losses.append(float(metrics["loss"]))
    return losses[0], losses[-1]


if __name__ == "__main__":
    refuse()
    exec(readme_block())
    first, last = train_a_step()
    print(f"loss {first:.3f} -> {last:.3f}")
    assert last < first
