"""The explorer: its numbers are those of predict and of NumPy, its pictures fit, and its command writes slides."""

import dataclasses
import io
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from explorer import image_of, weights_of
from PIL import Image
from tiny import TINY

from alexnet_jax import LRN, PAPER, convert, ten_crop, without
from alexnet_jax.cli import main
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.trained import Trained
from alexnet_jax.inspection import codes
from alexnet_jax.inspection.explore import (
    blocks,
    figure2,
    forward,
    html,
    neighbours,
    panels,
    pictures,
    pixels,
    slides,
    subject,
)
from alexnet_jax.inspection.explore.forward import WhatIf
from alexnet_jax.inspection.explore.neighbours import Found
from alexnet_jax.inspection.features import Index
from alexnet_jax.network.architectures import layer_names
from alexnet_jax.network.networks import LENET5, NAMED
from alexnet_jax.network.summary import rows, summary


def by_hand(weights, crop, off):
    """TINY in float64 NumPy, one output for each layer, with the maps of a tower set to 0 after every layer but fc8."""
    params = jax.tree.map(np.float64, weights.params)
    hs, outputs = [np.float64(crop)] * 2, {}
    names = layer_names(weights.architecture)
    for name, layer in list(zip(names, weights.architecture, strict=True))[1:]:
        kind = type(layer).__name__
        if kind in ("Conv", "Dense") and layer.sees == "all":
            hs = [np.concatenate(hs, -1)] * 2
        if kind == "Conv":
            kernel, bias, p = params[name]["kernel"], params[name]["bias"], layer.padding
            hs = [np.pad(h, ((p, p), (p, p), (0, 0))) for h in hs]
            windows = [np.lib.stride_tricks.sliding_window_view(h, (layer.size,) * 2, (0, 1)) for h in hs]
            hs = [np.einsum("ijcab,abco->ijo", w, kernel[t]) + bias[t] for t, w in enumerate(windows)]
        elif kind == "Dense":
            hs = [h @ params[name]["kernel"][t] + params[name]["bias"][t] for t, h in enumerate(hs)]
        elif kind == "ReLU":
            hs = [np.maximum(h, 0) for h in hs]
        elif kind == "LRN":
            hs = [h / (layer.k + layer.alpha * window_sums(h**2, layer.n)) ** layer.beta for h in hs]
        elif kind == "MaxPool":
            windows = [np.lib.stride_tricks.sliding_window_view(h, (layer.size,) * 2, (0, 1)) for h in hs]
            hs = [w[:: layer.stride, :: layer.stride].max((-1, -2)) for w in windows]
        elif kind == "Flatten":
            hs = [h.ravel() for h in hs]
        elif kind == "Dropout":
            hs = [h if layer.rescale else h * (1 - layer.rate) for h in hs]
        if name != names[-1]:
            hs = [np.zeros_like(h) if t in off else h for t, h in enumerate(hs)]
        outputs[name] = np.stack(hs)
    logits = np.concatenate(hs)[: weights.architecture[-1].units]
    exponents = np.exp(logits - logits.max())
    return outputs, exponents / exponents.sum()


def window_sums(squares, n):
    padded = np.pad(squares, ((0, 0), (0, 0), (n // 2, n // 2)))
    return sum(padded[..., i : i + squares.shape[-1]] for i in range(n))


@pytest.mark.parametrize(("views", "mean_at"), [(1, "crop"), (5, "center"), (10, "crop")])
def test_the_answers_are_those_of_predict(views, mean_at):
    weights, image = weights_of(views=views, mean_at=mean_at), image_of()
    look, seen = forward.see(forward.on_device(weights), image)
    trained = Trained.of(weights, batch_size=1)
    np.testing.assert_allclose(look.probabilities, trained.probabilities(image[None])[0], atol=1e-6)
    np.testing.assert_allclose(seen.mean, trained.probabilities(image[None], views)[0], atol=1e-6)
    for name in ("lrn1", "fc5"):
        np.testing.assert_allclose(
            np.concatenate(list(look.outputs[name]), -1).ravel(), trained.features(image[None], name)[0], atol=1e-4
        )


@pytest.mark.parametrize("off", [(), (0,), (1,), (0, 1)])
def test_a_tower_that_is_off_is_zeroed_maps_in_numpy(off):
    weights, image = weights_of(), image_of()
    look = forward.look(weights, image, WhatIf(towers_off=off))
    crop = (image - weights.mean_image)[2:14, 2:14]
    outputs, probabilities = by_hand(weights, crop, off)
    assert look.outputs.keys() == outputs.keys()
    for name, output in outputs.items():
        np.testing.assert_allclose(
            look.outputs[name], output, rtol=1e-4, atol=1e-4 * np.abs(output).max(), err_msg=name
        )
        if name != "fc5":
            assert not look.outputs[name][list(off)].any()
    np.testing.assert_allclose(look.probabilities, probabilities, atol=1e-5)
    if off:
        assert np.abs(look.probabilities - forward.look(weights, image).probabilities).max() > 1e-4


def test_without_normalization_it_is_the_network_without_these_layers():
    weights, image = weights_of(), image_of()
    look = forward.look(weights, image, WhatIf(lrn=False))
    other = dataclasses.replace(weights, architecture=without(TINY, LRN))
    np.testing.assert_allclose(look.probabilities, np.asarray(other.predict(image[None]))[0], atol=1e-6)
    assert "lrn1" in forward.look(weights, image).outputs
    assert "lrn1" not in look.outputs


def test_the_crop_is_the_one_at_its_corner_and_a_colour_is_added_to_all_pixels():
    weights, image = weights_of(), image_of()
    look = forward.look(weights, image, WhatIf(corner=(0, 4)))
    np.testing.assert_allclose(look.crop, image[:12, 4:], atol=1e-4)
    view = forward.views(weights, image)
    np.testing.assert_allclose(view.crops, ten_crop(jnp.asarray(image), 12), atol=1e-4)
    np.testing.assert_allclose(look.probabilities, view.probabilities[1], atol=1e-6)  # the top right corner
    shifted = forward.look(weights, image, WhatIf(corner=(0, 4), colours=7))
    added = shifted.crop - look.crop
    np.testing.assert_allclose(added, np.broadcast_to(added[0, 0], added.shape), atol=1e-3)
    assert np.abs(added).max() > 0.1


def test_dropout_zeroes_about_half_of_the_units_and_a_seed_gives_the_same_draw():
    weights, image = weights_of(), image_of()
    first, again, other = (forward.look(weights, image, WhatIf(dropout=seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.outputs["drop3"], again.outputs["drop3"])
    dropped = (first.outputs["drop3"] == 0) & (first.outputs["relu3"] > 0)
    assert dropped.any()
    assert (first.outputs["drop3"] > 0).any()
    kept = first.outputs["drop3"] > 0
    np.testing.assert_array_equal(first.outputs["drop3"][kept], first.outputs["relu3"][kept])
    assert (first.outputs["drop3"] != other.outputs["drop3"]).any()


@pytest.mark.parametrize(
    ("what_if", "words"),
    [
        (WhatIf(towers_off=(2,)), "this network has 2 tower"),
        (WhatIf(corner=(0, 5)), "from 0 to 4"),
        (WhatIf(colours=1), "no colour PCA"),
    ],
)
def test_changes_that_do_not_fit_are_refused(what_if, words):
    with pytest.raises(UsageError, match=words):
        forward.look(weights_of(pca=None), image_of(), what_if)


def test_other_images_and_infinite_weights_are_refused():
    with pytest.raises(UsageError, match="Rescale its shorter side to 16"):
        forward.look(weights_of(), image_of(15))
    weights = weights_of()
    weights.params["conv1"]["kernel"] = np.full_like(weights.params["conv1"]["kernel"], np.nan)
    with pytest.raises(FloatingPointError, match="not finite"):
        forward.look(weights, image_of())


def test_blocks_have_the_sizes_of_the_summary():
    made = blocks.blocks(PAPER)
    assert [block.name for block in made] == ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8"]
    assert [step.name for step in made[0].steps] == ["conv1", "relu1", "lrn1", "pool1"]
    assert sum(block.parameters for block in made) == 60_965_224
    assert made[0].steps[0].row.shape == (55, 55, 96)
    assert made[0].multiply_adds == 55 * 55 * 96 * 11 * 11 * 3
    assert f"{sum(row.multiply_adds for row in rows(PAPER)):,}" in summary(PAPER)


def test_the_window_of_maps_gives_the_layer_s_output():
    look = forward.look(weights_of(), image_of())
    number, row, column = blocks.strongest(look, "lrn1", tower=1)
    for map_number in (0, number):
        found = blocks.window(look, "lrn1", 1, map_number, row, column)
        middle = list(found.maps).index(map_number)
        np.testing.assert_allclose(found.a[middle] / found.divisor, found.b[middle], rtol=1e-5)
        assert found.squares == pytest.approx(np.square(np.float64(found.a)).sum())
    assert list(blocks.window(look, "lrn1", 0, 0, 0, 0).maps) == [0, 1, 2]
    with pytest.raises(UsageError, match="accepted are the LRN layers of this network: lrn1"):
        blocks.window(look, "lrn2", 0, 0, 0, 0)
    with pytest.raises(UsageError, match="accepted are numbers"):
        blocks.window(look, "lrn1", 0, 4, 0, 0)


def test_covering_and_gradient_are_those_of_the_network():
    weights, image = weights_of(), image_of()
    found = pixels.pixels(weights, image, target=2)
    crop = (image - weights.mean_image)[2:14, 2:14]
    np.testing.assert_allclose(found.whole, by_hand(weights, crop, ())[1][2], atol=1e-5)
    for r, c in ((0, 0), (3, 5)):
        covered = crop.copy()
        top, left = found.starts[r], found.starts[c]
        covered[top : top + found.patch, left : left + found.patch] = 0
        np.testing.assert_allclose(found.covered[r, c], by_hand(weights, covered, ())[1][2], atol=1e-5)

    def logit(crop):
        return by_hand(weights, crop, ())[0]["fc5"].ravel()[2]

    slopes = []
    for colour in range(3):
        step = np.zeros_like(crop, dtype=np.float64)
        step[6, 7, colour] = 1e-4
        slopes.append((logit(crop + step) - logit(crop - step)) / 2e-4)
    np.testing.assert_allclose(found.gradient[6, 7], np.abs(slopes).max(), rtol=1e-3)
    assert found.losses.shape == (12, 12)
    with pytest.raises(UsageError, match="from 0 to 4"):
        pixels.pixels(weights, image, target=5)


def test_pictures_of_maps():
    maps = np.zeros((2, 3, 4), np.float32)
    maps[..., 3] = 5
    picture = pictures.maps(maps)
    assert picture.shape[2] == 4
    colours = {tuple(colour) for colour in picture.reshape(-1, 4) if colour[3]}
    assert colours == {tuple(pictures.scaled(np.array([0, 1.0]))[k]) for k in range(2)}
    signed = pictures.scaled(np.array([-1.0, 0, 1.0]))
    assert signed[0, 2] > signed[0, 0]  # blue
    assert signed[2, 0] > signed[2, 2]  # red
    assert pictures.grid(np.zeros((6, 2, 2, 4), np.uint8), columns=3).shape == (5, 8, 4)
    assert pictures.heat(np.full((4, 4, 3), 100.0), np.zeros((4, 4))).shape == (4, 4, 3)


@pytest.mark.parametrize("name", NAMED)
def test_figure_2_has_a_box_for_each_layer_and_tower(name):
    architecture = NAMED[name]
    drawn = figure2.svg(architecture)
    for block in blocks.blocks(architecture):
        for tower in range(architecture[0].towers):
            assert f'id="pick-{block.name}-{tower}-' in drawn
    assert figure2.INK in drawn
    assert "http://www.w3.org" in drawn
    assert 'href="http' not in drawn


def values_of(weights, image, **changes):
    count = weights.architecture[0].towers
    names = [block.name for block in blocks.blocks(weights.architecture)]
    norms = blocks.norms(weights.architecture)
    margin = len(image) - weights.architecture[0].size
    values = {
        "image": image, "label": 1, "tab": "network", "works": [f"tower {t + 1}" for t in range(count)], "lrn": True,
        "dropout": False, "colours": False, "draw": 0, "top": margin // 2, "left": margin // 2, "layer": names[0],
        "norm": norms[0] if norms else None, "tower": "tower 1", "number": 1, "pixel": None, "target": -1,
    }  # fmt: skip
    return {**values, **changes}


def test_the_bars_are_what_predict_prints(tmp_path, capsys):
    weights, image = weights_of(class_names=("ant", "bee", "cat", "<dog>", "emu")), image_of()
    convert.write(weights, tmp_path / "tiny.safetensors")
    Image.fromarray(image).save(tmp_path / "a.png")
    shown = panels.show(subject.prepare(weights), "", values_of(weights, image))
    for views, bars in zip(("1", "10"), shown["bars"].split("ex-bars")[1:], strict=True):
        main(["predict", str(tmp_path / "a.png"), f"--weights={tmp_path}/tiny.safetensors", f"--views={views}"])
        printed = capsys.readouterr().out.partition(": ")[2].strip().split(", ")
        found = [line.replace("%", "") for line in printed]
        rows = [
            row.partition("</span>")[0].replace("&lt;", "<").replace("&gt;", ">") for row in bars.split('ex-name">')[1:]
        ]
        numbers = [row.partition("%")[0] for row in bars.split('ex-number">')[1:]]
        assert [f"{name.removesuffix(' ✓')} {number}" for name, number in zip(rows, numbers, strict=True)] == found


@pytest.mark.parametrize("architecture", [TINY, LENET5, without(TINY, LRN)], ids=["tiny", "lenet5", "no_lrn"])
def test_each_tab_and_each_layer_shows_something(architecture):
    side = architecture[0].size + 4
    weights, image = weights_of(architecture, side), image_of(side)
    made, svg = subject.prepare(weights), figure2.svg(architecture)
    for tab in panels.PANELS:
        shown = panels.show(made, svg, values_of(weights, image, tab=tab))
        assert not shown["problem"]
        assert any(shown[name] for name in shown.keys() - {"seen", "bars", "problem"})
    for block in blocks.blocks(architecture):
        assert f"{block.name}: " in panels.show(made, "", values_of(weights, image, layer=block.name))["maps"]


def test_the_window_of_a_norm_over_all_towers_is_that_of_each_towers_map():
    architecture = tuple(LRN(alpha=1e-2, sees="all") if isinstance(layer, LRN) else layer for layer in TINY)
    weights, image = weights_of(architecture), image_of()
    made = subject.prepare(weights)
    for tower, seen in ((1, "over maps 1 to 4"), (2, "over maps 4 to 8")):
        values = values_of(weights, image, tab="lrn", tower=f"tower {tower}", number=2)
        shown = panels.show(made, "", values)
        assert not shown["problem"]
        assert f"Map {4 * (tower - 1) + 2} has " in shown["window"]
        assert seen in shown["window"]
        assert "map 2 of 4" in shown["point"]


def test_a_change_shows_what_was_before_and_an_error_is_a_sentence():
    weights, image = weights_of(), image_of()
    made = subject.prepare(weights)
    assert "was" not in panels.show(made, "", values_of(weights, image))["bars"]
    changed = panels.show(made, "", values_of(weights, image, works=["tower 2"]))
    before = forward.look(weights, image).probabilities
    after = forward.look(weights, image, WhatIf(towers_off=(0,))).probabilities
    k = int(after.argmax())
    assert f"was {html.percent(float(before[k]))}" in changed["bars"]
    assert html.percent(float(after[k])) in changed["bars"]
    assert "(all 0)" in changed["maps"]
    assert "ex-error" in panels.show(made, "", values_of(weights, image, top=99))["problem"]
    assert "ex-error" in panels.show(made, "", values_of(weights, image, layer="no such layer"))["problem"]
    assert "Normalization is off" in panels.show(made, "", values_of(weights, image, lrn=False, tab="lrn"))["window"]


def test_the_command_writes_slides(tmp_path, capsys):
    convert.write(weights_of(), tmp_path / "tiny.safetensors")
    Image.fromarray(image_of(40)).save(tmp_path / "a.gif")
    arguments = ["explore", f"--weights={tmp_path}/tiny.safetensors", f"--image={tmp_path}/a.gif"]
    main([*arguments, f"--save={tmp_path}/slides", "--tower_off=1", "--corner=0,4"])
    written = sorted(path.name for path in (tmp_path / "slides").iterdir())
    maps = [f"maps_{block.name}.png" for block in blocks.blocks(TINY)]
    assert written == sorted(["network.png", "answer.png", "views.png", "pixels.png", "lrn_lrn1.png", *maps])
    for path in (tmp_path / "slides").iterdir():
        with Image.open(path) as picture:
            assert min(picture.size) > 60, path
    capsys.readouterr()
    for wrong, words in (
        (["--save=x"], "--save needs an image"),
        (["--codes=x", "--save=x", "--image=x"], "--codes needs the index"),
        ([*arguments[1:2], f"--image={tmp_path}/tiny.safetensors", "--save=x"], "is not an image"),
        ([*arguments[1:], "--save=x", "--tower_off=3"], "2 tower"),
    ):
        with pytest.raises(SystemExit, match=words):
            main(["explore", *wrong])


def test_without_a_network_it_says_what_to_give(monkeypatch, tmp_path):
    pytest.importorskip("gradio", reason="the extra explore is not installed")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.stdin", io.StringIO())
    with pytest.raises(SystemExit, match="Give --workdir, --weights or --train"):
        main(["explore"])


def test_without_gradio_it_says_which_extra_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"alexnet-jax\[explore\]"):
        main(["explore"])


def test_the_nearest_images_have_the_distances_of_numpy_and_the_codes_of_the_encoder():
    weights, images = weights_of(), np.stack([image_of(seed=k) for k in range(20)])
    trained = Trained.of(weights, batch_size=4)
    vectors = trained.features(images, "relu4")
    where, labels = np.array([b"%d.png" % k for k in range(20)]), np.arange(20, dtype=np.int32) % 5
    about = {"layer": "relu4", "dtype": "float32", "digest": weights.digest, "network": "tests", "split": "train"}
    index = Index(Path("index.npz"), vectors, labels, where, **about, class_names=None)
    encoder = codes.train(vectors, np.arange(20), 32, steps=20)
    found = neighbours.nearest(trained, Found(index, encoder.encode(vectors), encoder), images[7], count=3)
    distances = np.linalg.norm(vectors.astype(np.float64) - vectors[7], axis=1)
    assert list(found.numbers) == list(np.argsort(distances, kind="stable")[:3])
    assert found.numbers[0] == 7
    np.testing.assert_allclose(found.distances, np.sort(distances)[:3], atol=1e-4)
    np.testing.assert_array_equal(found.codes[0], found.code)
    np.testing.assert_array_equal(np.packbits(found.codes, axis=1), encoder.encode(vectors[found.numbers]))
    shown = html.nearest_panel(found, index, images[found.numbers])
    assert "7.png" in shown
    assert "0 of 32 bits differ" in shown


def test_slides_of_a_network_with_one_tower_and_one_view(tmp_path):
    weights = weights_of(LENET5, 32, views=1)
    paths = slides.write(tmp_path, subject.prepare(weights), image_of(32))
    assert {path.name for path in paths} >= {"answer.png", "views.png", "maps_conv1.png"}
