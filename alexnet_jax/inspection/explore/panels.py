"""What the page shows for the values of its controls, as HTML by the names of the page's parts; no Gradio here."""

import traceback

import numpy as np

from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.predict import best
from alexnet_jax.inspection.explore import blocks, forward, html, neighbours, pictures
from alexnet_jax.inspection.explore.forward import WhatIf
from alexnet_jax.inspection.explore.pixels import pixels
from alexnet_jax.network.architectures import Conv, layer_names, towers_of


def show(subject, svg, values):
    """What the page shows for the values of its inputs, by the names of the outputs; errors become a sentence."""
    image = values["image"]
    if image is None:
        return {"figure": html.network_figure(svg, values["layer"])}
    try:
        what_if = _what_if_of(subject, values)
        look, seen = forward.see(subject.weights, image, what_if)
        panel = PANELS[values["tab"]]
        return _answer(subject, values, what_if, look, seen) | panel(subject, svg, values, what_if, look, seen)
    except (UsageError, FloatingPointError) as error:
        return {"problem": html.sentence(str(error), error=True)}
    except Exception as error:  # a page that is dead is worse than a sentence
        traceback.print_exc()
        words = f"That did not work ({type(error).__name__}: {error}). Try another image, or “Undo all changes”."
        return {"problem": html.sentence(words, error=True)}


def _what_if_of(subject, values):
    count = towers_of(subject.weights.architecture)
    off = tuple(t for t in range(count) if f"tower {t + 1}" not in values["works"]) if count > 1 else ()
    draw, margin = int(values["draw"]), subject.side - subject.weights.architecture[0].size
    corner = (int(values["top"]), int(values["left"])) if margin else None
    return WhatIf(
        towers_off=off,
        lrn=bool(values["lrn"]),
        dropout=draw if values["dropout"] else None,
        colours=draw if values["colours"] else None,
        corner=None if corner == (margin // 2,) * 2 else corner,
    )


def _answer(subject, values, what_if, look, seen):
    """The crop, and the bars of one view and of all views."""
    image, size = values["image"], look.architecture[0].size
    before = views_before = None
    if what_if != WhatIf():
        as_before = forward.see(subject.weights, image)
        before, views_before = as_before[0].probabilities, as_before[1].mean
    count, names, label = len(seen.probabilities), subject.names, values["label"]
    crop = html.image(pictures.shown(look.crop), "what the network sees", kind="ex-maps")
    whole = html.image(pictures.framed(image, look.corner, size), "the image and its crop", kind="ex-maps")
    one = html.bars("One view", look.probabilities, names, before, label)
    several = html.bars(f"{count} views, mean", seen.mean, names, views_before, label) if count > 1 else ""
    captions = (f"image, {subject.side} × {subject.side}", f"crop, {size} × {size}")
    figures = "".join(
        f"<figure>{p}<figcaption>{c}</figcaption></figure>" for p, c in zip((whole, crop), captions, strict=True)
    )
    return {
        "problem": "",
        "seen": f'<div class="ex-two">{figures}</div>',
        "bars": f'<div class="ex-answers">{one}{several}</div>',
    }


def _network_panel(subject, svg, values, what_if, look, seen):
    shown = blocks.blocks(look.architecture)
    block = next(block for block in shown if block.name == values["layer"])
    kernels = None
    if block is shown[0] and isinstance(block.steps[0].layer, Conv) and block.steps[0].layer.table is None:
        kernels = np.asarray(forward.changed(subject.weights, values["image"], what_if)[1][block.name]["kernel"])
    return {
        "figure": html.network_figure(svg, block.name),
        "maps": html.block_panel(look, block, kernels),
    }


def _lrn_panel(subject, svg, values, what_if, look, seen):
    norms = blocks.norms(look.architecture)
    if not norms:
        there = bool(blocks.norms(subject.weights.architecture))
        words = "Normalization is off. Switch it on above." if there else "This network has no normalization."
        return {"point": "", "window": html.sentence(words)}
    name = values["norm"] if values["norm"] in norms else norms[0]
    names = layer_names(look.architecture)
    maps = look.outputs[names[names.index(name) - 1]]  # (T, H, W, C)
    tower = min(len(maps) - 1, int(values["tower"].removeprefix("tower ")) - 1)
    number = min(maps.shape[-1], max(1, int(values["number"] or 1))) - 1
    shown = maps[tower, ..., number]
    pixel = values["pixel"]
    if pixel is None or not (pixel[0] < shown.shape[0] and pixel[1] < shown.shape[1]):
        pixel = np.unravel_index(np.abs(shown).argmax(), shown.shape)
    pixel = tuple(map(int, pixel))
    words = f"map {number + 1} of {maps.shape[-1]}, before {name}, at row {pixel[0]}, column {pixel[1]}"
    if look.architecture[names.index(name)].sees == "all":  # the window is among the maps of all towers
        tower, number = 0, tower * maps.shape[-1] + number
    found = blocks.window(look, name, tower, number, *pixel)
    caption = f"<p class='ex-caption'>{words}</p>"
    return {"point": html.lrn_map(shown, pixel, words) + caption, "window": html.lrn_panel(found, number)}


def _pixels_panel(subject, svg, values, what_if, look, seen):
    target = None if values["target"] in (None, -1) else int(values["target"])
    found = pixels(subject.weights, values["image"], what_if, target)
    likeliest = best(look.probabilities, 1)[0]
    note = "" if target in (None, likeliest) else html.sentence(f"The likeliest is “{subject.names[likeliest]}”.")
    return {"matters": html.pixels_panel(look.crop, found, subject.names) + note}


def _views_panel(subject, svg, values, what_if, look, seen):
    return {"all_views": html.views_panel(seen, subject.names)}


def _nearest_panel(subject, svg, values, what_if, look, seen):
    if subject.found is None:
        words = (
            "There is no index of training images yet. Make one with `python -m alexnet_jax features`, and give it as "
            "--index=FILE; with --codes=FILE, the codes are shown as well."
        )
        return {"nearest": html.sentence(words)}
    found = neighbours.nearest(subject.trained, subject.found, values["image"])
    return {
        "nearest": html.nearest_panel(found, subject.found.index, subject.training_images(found.numbers))
        + html.sentence("Nearest images are those of the unchanged network and image.")
    }


PANELS = {
    "network": _network_panel,
    "lrn": _lrn_panel,
    "pixels": _pixels_panel,
    "views": _views_panel,
    "nearest": _nearest_panel,
}
