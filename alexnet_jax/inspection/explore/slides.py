"""The views of the explorer as PNG files, for slides and without a page."""

from pathlib import Path

import numpy as np

from alexnet_jax.evaluation.predict import best
from alexnet_jax.inspection.explore import blocks, figure2, forward, html, neighbours, pictures
from alexnet_jax.inspection.explore.forward import WhatIf
from alexnet_jax.inspection.explore.pixels import pixels
from alexnet_jax.inspection.explore.subject import Subject
from alexnet_jax.inspection.report.figures import save_gallery, save_png, show
from alexnet_jax.network.architectures import Conv, layer_names


def write(folder: Path, subject: Subject, image: np.ndarray, what_if: WhatIf = WhatIf()) -> list[Path]:  # noqa: B008 - frozen
    """Writes all views of an image as PNG, 160 pixels per inch.

    Args:
      folder: for the files network.png, answer.png, views.png, maps_LAYER.png, pixels.png, and, where there is
        something to show, lrn_LAYER.png and nearest.png. It is made if it does not exist.
      subject: the network.
      image: (S, S, 3) uint8.
      what_if: changes of the network or of the image.

    Returns:
      The paths of the files.

    Raises:
      UsageError, FloatingPointError: as forward.see.
    """
    look, seen = forward.see(subject.weights, image, what_if)
    folder.mkdir(parents=True, exist_ok=True)
    drawings = {"network": (lambda figure: figure2.draw(figure, look.architecture), figure2.size(look.architecture))}
    drawings["answer"] = (lambda figure: _answer(figure, subject, image, look, seen)), (9, 3)
    lines = -(-len(seen.crops) // 5)
    drawings["views"] = (lambda figure: _views(figure, seen, subject.names)), (10, 3.6 * lines)
    for block in blocks.blocks(look.architecture):
        kernels = _kernels(subject, block, look)
        drawings[f"maps_{block.name}"] = _maps(look, block, kernels)
    for name in blocks.norms(look.architecture):
        drawings[f"lrn_{name}"] = (lambda figure, name=name: _lrn(figure, look, name)), (9, 4)
    found = pixels(subject.weights, image, what_if)
    drawings["pixels"] = (lambda figure: _pixels(figure, look, found, subject.names)), (9, 3.6)
    paths = []
    for name, (draw, size) in drawings.items():
        paths.append(folder / f"{name}.png")
        save_png(draw, size, paths[-1])
    if subject.found and subject.training is not None:
        paths.append(folder / "nearest.png")
        _nearest(subject, image, paths[-1])
    return paths


def _kernels(subject, block, look):
    """The kernels of the first layer of the network, to be shown beside its maps; None for other layers."""
    first, layer = blocks.blocks(look.architecture)[0], block.steps[0].layer
    if block.name != first.name or not isinstance(layer, Conv) or layer.table is not None:
        return None
    return np.asarray(subject.weights.params[block.name]["kernel"])


def _bars(axis, title, probabilities, names, count=html.BARS):
    chosen = best(probabilities, count)
    axis.barh(range(len(chosen)), 100 * probabilities[chosen], color="C0")
    axis.set(xlim=(0, 100), yticks=range(len(chosen)), yticklabels=[names[k][:22] for k in chosen], title=title)
    axis.bar_label(axis.containers[0], [html.percent(float(p)) for p in probabilities[chosen]], padding=2, fontsize=8)
    axis.tick_params(labelsize=8)
    axis.set_xticks([])
    axis.spines[["bottom"]].set_visible(False)
    axis.invert_yaxis()


def _answer(figure, subject, image, look, seen):
    several = len(seen.crops) > 1
    axes = figure.subplots(1, 3 + several, width_ratios=[1, 1, 1.4, 1.4][: 3 + several])
    size = look.architecture[0].size
    show(axes[0], pictures.framed(image, look.corner, size), f"image, {len(image)} × {len(image)}")
    show(axes[1], pictures.shown(look.crop), f"crop, {size} × {size}")
    _bars(axes[2], "one view", look.probabilities, subject.names)
    if several:
        _bars(axes[3], f"{len(seen.crops)} views, mean", seen.mean, subject.names)


def _views(figure, seen, names):
    columns = min(5, len(seen.crops))
    lines = -(-len(seen.crops) // 5)
    axes = figure.subplots(2 * lines, columns, squeeze=False, height_ratios=[2, 1] * lines)
    for v, (crop, name) in enumerate(zip(seen.crops, html.view_names(len(seen.crops)), strict=True)):
        line, column = 2 * (v // 5), v % 5
        differs = v in seen.others
        show(axes[line, column], pictures.shown(crop), f"{name}: disagrees" if differs else name)
        _bars(axes[line + 1, column], "", seen.probabilities[v], names, 3)
        axes[line + 1, column].set_xlim(0, 160)  # room for the numbers


def _maps(look, block, kernels):
    """The function that draws a block, and the size of its figure."""
    rows = []
    for step in block.steps:
        output = look.outputs[step.name]
        largest, pair = float(np.abs(output).max()), kernels if step is block.steps[0] else None
        rows.append(
            [
                pictures.maps(tower, largest) if pair is None else pictures.beside_kernels(pair[t], tower, largest)
                for t, tower in enumerate(output)
            ]
        )
    width = 9 / len(rows[0])
    heights = [max(0.4, width * max(len(p) / p.shape[1] for p in row)) for row in rows]

    def draw(figure):
        axes = figure.subplots(len(rows), len(rows[0]), squeeze=False, height_ratios=heights)
        for line, (step, row) in enumerate(zip(block.steps, rows, strict=True)):
            for t, picture in enumerate(row):
                tower = f", tower {t + 1}" if len(row) > 1 else ""
                show(axes[line, t], picture, f"{step.name}{tower}: {' × '.join(map(str, step.row.shape))} in all")

    return draw, (9.2, sum(heights) + 0.35 * len(rows))


def _lrn(figure, look, name):
    number, row, column = blocks.strongest(look, name)
    found = blocks.window(look, name, 0, number, row, column)
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.3])
    before = look.outputs[layer_names(look.architecture)[layer_names(look.architecture).index(name) - 1]]
    show(left, pictures.scaled(before[0, ..., number]), f"map {number + 1} before {name}")
    left.plot(column, row, "s", markersize=9, markerfacecolor="none", markeredgecolor="#4ade80", markeredgewidth=2)
    places = np.arange(len(found.maps))
    right.bar(places - 0.2, found.a, 0.4, color="C2", label=f"before ({found.before})")
    right.bar(places + 0.2, found.b, 0.4, color="C0", label=f"after ({name})")
    right.set_xticks(places, [f"map {k + 1}" for k in found.maps])
    right.set_title(f"row {row}, column {column}: divisor of map {number + 1} is {found.divisor:.4g}", fontsize=9)
    right.legend()


def _pixels(figure, look, found, names):
    axes = figure.subplots(1, 3)
    show(axes[0], pictures.shown(look.crop), f"“{names[found.target]}”: {html.percent(found.whole)}")
    show(axes[1], pictures.heat(look.crop, found.losses), f"covered by {found.patch} × {found.patch}: where it falls")
    show(axes[2], pictures.heat(look.crop, found.gradient), "gradient")


def _nearest(subject, image, path):
    found = neighbours.nearest(subject.trained, subject.found, image)
    index = subject.found.index
    titles = ["this image"]
    for m, (number, distance) in enumerate(zip(found.numbers, found.distances, strict=True)):
        bits = "" if found.codes is None else f"\n{int((found.codes[m] != found.code).sum())} bits differ"
        titles.append(f"{index.class_of(number)}\ndistance {distance:.4g}{bits}")
    save_gallery([[image, *subject.training_images(found.numbers)]], [titles], path)
