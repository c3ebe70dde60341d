"""The parts of the page as HTML. Pictures are data: URIs, so that the page asks for nothing else."""

import html

import numpy as np

from alexnet_jax.evaluation.predict import best
from alexnet_jax.inspection.explore import figure2, pictures
from alexnet_jax.inspection.explore.blocks import Block, Window
from alexnet_jax.inspection.explore.forward import Look, Views
from alexnet_jax.inspection.explore.neighbours import Neighbours
from alexnet_jax.inspection.explore.pixels import Pixels
from alexnet_jax.inspection.report.figures import image_uri
from alexnet_jax.network.architectures import Architecture

BARS = 5
VIEWS = ("top left", "top right", "bottom left", "bottom right", "centre")
_COLOURS = {
    figure2.INK: "var(--body-text-color)",
    figure2.FAINT: "var(--ex-faint)",
    figure2.FACE: "var(--ex-face)",
    figure2.TOP: "var(--ex-top)",
    figure2.SIDE: "var(--ex-side)",
}


def sentence(words: str, error: bool = False) -> str:
    """A sentence for the user, escaped."""
    return f'<p role="status" class="ex-status{" ex-error" if error else ""}">{html.escape(words)}</p>'


def image(pixels: np.ndarray, words: str, width: str = "100%", kind: str = "") -> str:
    """(H, W, 3 or 4) uint8 pixels as an <img> with a text for those who cannot see it."""
    return (
        f'<img src="{image_uri(np.ascontiguousarray(pixels))}" alt="{html.escape(words)}" class="ex-img {kind}" '
        f'style="width:{width}">'
    )


def percent(probability: float) -> str:
    """A probability as `predict` prints it."""
    return f"{probability:.1%}"


def bars(
    title: str, probabilities: np.ndarray, names, before: np.ndarray | None = None, label: int | None = None
) -> str:
    """The five likeliest classes as bars.

    Args:
      title: a line above the bars.
      probabilities: (K,).
      names: names of the K classes.
      before: (K,) probabilities without the changes, shown as a mark and a number; or None.
      label: number of the true class, which gets a tick; or None.
    """
    lines = []
    for k in best(probabilities, BARS):
        p, was = float(probabilities[k]), None if before is None else float(before[k])
        mark = "" if was is None else f'<i class="ex-was" style="left:{100 * was:.2f}%"></i>'
        change = "" if was is None else f'<span class="ex-before">was {percent(was)}</span>'
        tick = " ✓" if k == label else ""
        lines.append(
            f'<div class="ex-row" data-class="{k}"><span class="ex-name">{html.escape(names[k])}{tick}</span>'
            f'<span class="ex-track"><b style="width:{100 * p:.2f}%"></b>{mark}</span>'
            f'<span class="ex-number">{percent(p)}</span>{change}</div>'
        )
    return f'<div class="ex-bars" {_width(names)}><h4>{html.escape(title)}</h4>{"".join(lines)}</div>'


def _width(names):
    """The style that makes all columns of names as wide as the longest name, up to a limit."""
    return f'style="--ex-width:{min(18, 2 + max(map(len, names)))}ch"'


def view_names(count: int) -> list[str]:
    """The names of the views, in their order."""
    if count == 1:
        return ["centre"]
    return [*VIEWS, *(f"{name}, mirrored" for name in VIEWS)][:count]


def views_panel(seen: Views, names) -> str:
    """Each view with its three likeliest classes; views that disagree with the mean are marked."""
    count, winner = len(seen.probabilities), names[seen.mean.argmax()]
    others = len(seen.others)
    words = (
        f"All {count} views say “{winner}”." if not others
        else f"{count - others} of {count} views say “{winner}”, as their mean does; {others} say something else."
    )  # fmt: skip
    if count < 10:
        words += f" This network is tested with {count} view{'s' * (count > 1)}, without mirrored images."
    cards = []
    for v, name in enumerate(view_names(count)):
        row = seen.probabilities[v]
        rows = "".join(
            f'<div class="ex-row"><span class="ex-name">{html.escape(names[k])}</span>'
            f'<span class="ex-track"><b style="width:{100 * float(row[k]):.2f}%"></b></span>'
            f'<span class="ex-number">{percent(float(row[k]))}</span></div>'
            for k in best(row, 3)
        )
        differs = v in seen.others
        cards.append(
            f'<figure class="ex-card{" ex-differs" if differs else ""}">{image(pictures.shown(seen.crops[v]), name)}'
            f"<figcaption>{name}{' — disagrees' if differs else ''}</figcaption>{rows}</figure>"
        )
    return f'{sentence(words)}<div class="ex-cards" {_width(names)}>{"".join(cards)}</div>'


def network_figure(svg: str, chosen: str) -> str:
    """The paper's Figure 2, with the chosen layer in another colour; `svg` is what figure2.svg gives."""
    for colour, variable in _COLOURS.items():
        svg = svg.replace(colour, variable)
    style = f'<style>.ex-figure2 [id^="pick-{chosen}-"] path {{fill: var(--ex-chosen) !important;}}</style>'
    return f'{style}<div class="ex-figure2">{svg}</div>'


def block_panel(look: Look, block: Block, kernels: np.ndarray | None) -> str:
    """A block: its sizes in words, and the output of each of its layers, tower by tower.

    Args:
      look: an image in the network.
      block: of look.architecture.
      kernels: (T, h, w, C, n) kernels of the block, to show beside its maps; or None.
    """
    first = block.steps[0]
    shape = " × ".join(map(str, first.row.shape))
    words = f"{block.name}: {shape}, {block.parameters:,} parameters, {block.multiply_adds:,} multiply-adds per image."
    parts = [f"<h4>{html.escape(words)}</h4>"]
    for step in block.steps:
        output = look.outputs[step.name]  # (T, ..., C)
        largest = float(np.abs(output).max())
        pair = kernels if step is first else None
        towers = []
        for t, tower in enumerate(output):
            shown = pictures.maps(tower, largest) if pair is None else pictures.beside_kernels(pair[t], tower, largest)
            name = f"{step.name}, tower {t + 1}" if len(output) > 1 else step.name
            off = "" if tower.any() else " (all 0)"
            towers.append(
                f'<figure class="ex-tower">{image(shown, name, kind="ex-maps")}'
                f"<figcaption>{html.escape(name)}{off}</figcaption></figure>"
            )
        size = " × ".join(map(str, step.row.shape))
        beside = "; each kernel beside its map" if pair is not None else ""
        heading = f"{step.name} ({_words(step.layer)}): {size}, from {output.min():.3g} to {output.max():.3g}{beside}"
        parts.append(f'<h5>{html.escape(heading)}</h5><div class="ex-towers">{"".join(towers)}</div>')
    return "".join(parts)


def _words(layer):
    kinds = {
        "Conv": "convolution, before ReLU", "Dense": "fully connected, before ReLU", "LRN": "normalization",
        "MaxPool": "max pooling", "AveragePool": "average pooling", "Dropout": "dropout", "Flatten": "as one vector",
    }  # fmt: skip
    return kinds.get(type(layer).__name__, type(layer).__name__)


def lrn_map(maps: np.ndarray, pixel: tuple[int, int], words: str) -> str:
    """(H, W) activations as a picture to point at; a mark shows the pixel (row, column)."""
    height, width = maps.shape
    top, left = 100 * (pixel[0] + 0.5) / height, 100 * (pixel[1] + 0.5) / width
    picture = image(pictures.scaled(maps), words, kind="ex-maps")
    return (
        f'<div class="ex-point" tabindex="0" data-rows="{height}" data-columns="{width}" data-row="{pixel[0]}" '
        f'data-column="{pixel[1]}">{picture}<i style="top:{top:.2f}%;left:{left:.2f}%"></i></div>'
    )


def lrn_panel(found: Window, number: int) -> str:
    """The neighbouring maps at one pixel, before and after, and the formula with its numbers."""
    layer, middle = found.layer, int(np.flatnonzero(found.maps == number)[0])
    largest = max(float(np.abs(found.a).max()), 1e-30)
    rows = "".join(
        f"<tr{' class=ex-middle' if m == middle else ''}><td>map {k + 1}</td><td>{a:.4g}</td>"
        f'<td class="ex-both"><b style="width:{100 * abs(a) / largest:.1f}%"></b>'
        f'<i style="width:{100 * abs(b) / largest:.1f}%"></i></td><td>{b:.4g}</td></tr>'
        for m, (k, a, b) in enumerate(zip(found.maps, found.a, found.b, strict=True))
    )
    mean = "mean" if layer.average else "sum"
    words = (
        f"Map {number + 1} has {found.a[middle]:.4g} here. The {mean} of squares over maps {found.maps[0] + 1} to "
        f"{found.maps[-1] + 1} is {found.squares:.4g}. The divisor is ({layer.k:g} + {layer.alpha:g} × "
        f"{found.squares:.4g})^{layer.beta:g} = {found.divisor:.4g}, so normalization gives {found.b[middle]:.4g}."
    )
    return (
        f'{sentence(words)}<table class="ex-lrn"><tr><th></th><th>before</th><th>before (bar above) and after (bar '
        f"below)</th><th>after</th></tr>{rows}</table>"
    )


def pixels_panel(crop: np.ndarray, found: Pixels, names) -> str:
    """The crop, what covering shows, and the gradient, side by side."""
    r, c = np.unravel_index(found.covered.argmin(), found.covered.shape)
    name, side = names[found.target], found.patch
    words = (
        f"The probability of “{name}” is {percent(found.whole)}. A {side} × {side} patch of the mean colour lowers it "
        f"most at row {found.starts[r]}, column {found.starts[c]}: then it is {percent(float(found.covered[r, c]))}."
    )
    if found.covered.min() >= found.whole:
        words = (
            f"The probability of “{name}” is {percent(found.whole)}. A {side} × {side} patch of the mean colour does "
            "not lower it anywhere."
        )
    shown = (
        (pictures.shown(crop), "what the network sees"),
        (pictures.heat(crop, found.losses), "covered: where the probability falls"),
        (pictures.heat(crop, found.gradient), "gradient: where a small change has the largest effect"),
    )
    figures = "".join(f"<figure>{image(p, w, kind='ex-maps')}<figcaption>{w}</figcaption></figure>" for p, w in shown)
    return f'{sentence(words)}<div class="ex-three">{figures}</div>'


def nearest_panel(found: Neighbours, index, pictures_of: np.ndarray | None) -> str:
    """The nearest training images with their distances, and codes where there are some."""
    code = "" if found.code is None else f"<p>Code of this image ({len(found.code)} bits)</p>{_code(found.code)}"
    cards = []
    for m, (number, distance) in enumerate(zip(found.numbers, found.distances, strict=True)):
        place, name = index.place_of(number), html.escape(index.class_of(number))
        picture = "" if pictures_of is None else image(pictures_of[m], place)
        bits = ""
        if found.codes is not None:
            differ = int((found.codes[m] != found.code).sum())
            bits = f"<div>{differ} of {len(found.code)} bits differ</div>{_code(found.codes[m], found.code)}"
        cards.append(
            f'<figure class="ex-card">{picture}<figcaption>{name}</figcaption><div>distance {distance:.4g}</div>{bits}'
            f'<div class="ex-place">{html.escape(place)}</div></figure>'
        )
    words = f"The {len(cards)} nearest of {len(index):,} images of {index.split}, by the distance of {index.layer}."
    return f'{sentence(words)}{code}<div class="ex-cards">{"".join(cards)}</div>'


def _code(bits, other=None):
    """Bits as squares, 32 in a line; those that differ from `other` are red."""
    differs = np.zeros(len(bits), bool) if other is None else bits != other
    colours = np.where(bits[:, None], [40, 90, 150, 255], [200, 205, 212, 255]).astype(np.uint8)
    colours[differs] = [200, 60, 40, 255]
    picture = pictures.grid(colours[:, None, None].repeat(4, 1).repeat(4, 2), columns=min(32, len(bits)))
    return image(picture, "code: " + "".join(map(str, bits.astype(int))), kind="ex-maps ex-code")


def tests_strip(tests: np.ndarray, labels, names) -> str:
    """Test images as buttons."""
    buttons = "".join(
        f'<button type="button" data-pick="{n}" title="{html.escape(names[label])}">'
        f"{image(picture, f'test image of {names[label]}')}</button>"
        for n, (picture, label) in enumerate(zip(tests, labels, strict=True))
    )
    return f'<div class="ex-strip">{buttons}</div>'


def title(source: str, architecture: Architecture, classes: int) -> str:
    """The head of the page."""
    towers = architecture[0].towers
    words = f"{source}; {classes} classes; {towers} tower{'s' if towers > 1 else ''}"
    return f"<h1>AlexNet explorer</h1><p>{html.escape(words)}</p>"
