"""The page of a run: figures that say what they claim, numbers that are those of the files, one file without links."""

import argparse
import base64
import csv
import html.parser
import json
import re

import cv2
import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY, statistics_of

from alexnet_jax import AlexNet, Input, convert
from alexnet_jax import config as config_lib
from alexnet_jax.cli import report as command
from alexnet_jax.data.sources import Dataset
from alexnet_jax.errors import UsageError
from alexnet_jax.inspection import report
from alexnet_jax.inspection.report import confusion, curves, examples, kernels
from alexnet_jax.network.architectures import replace
from alexnet_jax.training import setup
from alexnet_jax.training.augment import ColorPCA
from configs import quickstart

SECTIONS = ("errors", "curves", "kernels", "predictions", "neighbours", "confusion", "augmentations", "config")
NAMES = ("cat", "dog", "<b>bird</b>", "$fish$", "horse & cart")


# The specialisation of the towers


def test_a_grey_kernel_has_colour_share_0_and_one_across_the_grey_axis_1():
    brightness = np.random.default_rng(0).normal(size=(4, 3, 3, 1))
    assert kernels.colour_share(brightness * [1, 1, 1]) == pytest.approx(0, abs=1e-12)
    assert kernels.colour_share(brightness * [1, -1, 0]) == pytest.approx(1)
    assert kernels.colour_share(brightness * [1, 0, 0]) == pytest.approx(2 / 3)


def test_the_share_counts_kernels_by_their_energy():
    # |g|^2 = 3 * 2^2 = 12 and |c|^2 = 1 + 1 = 2.
    assert kernels.colour_share(np.array([[2.0, 2, 2], [1, -1, 0]])) == pytest.approx(2 / 14)


@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3))
def test_random_towers_are_not_specialised(seed, scale):
    drawn = np.random.default_rng(seed).normal(size=(2, 48, 11, 11, 3)).astype(np.float32)
    assert kernels.specialisation(scale * drawn) < 0.03
    assert kernels.colour_share(drawn[0]) == pytest.approx(2 / 3, abs=0.03)


@given(st.integers(0, 2**32 - 1))
def test_a_grey_tower_beside_a_coloured_one_is_fully_specialised(seed):
    drawn = np.random.default_rng(seed).normal(size=(2, 48, 11, 11, 3))
    grey = np.broadcast_to(drawn[0].mean(-1, keepdims=True), drawn[0].shape)
    coloured = drawn[1] - drawn[1].mean(-1, keepdims=True)
    assert kernels.specialisation(np.stack([grey, coloured])) == pytest.approx(1)
    assert kernels.specialisation(np.stack([coloured, coloured])) == 0


def test_kernels_are_drawn_around_mid_grey_each_by_one_scale():
    drawn = np.zeros((9, 2, 2, 3))
    drawn[0, 0, 0], drawn[0, 1, 1], drawn[8, 0, 1] = [4, 0, -4], [2, 2, 2], [-1, 0, 0]
    pixels = kernels.tile(drawn)
    assert pixels.shape == (5, 23, 4)  # two rows of eight, a clear pixel between
    np.testing.assert_array_equal(pixels[0, 0], [255, 128, 0, 255])
    np.testing.assert_array_equal(pixels[1, 1], [191, 191, 191, 255])  # 0.75
    np.testing.assert_array_equal(pixels[3, 1], [0, 128, 128, 255])
    np.testing.assert_array_equal(pixels[0, 3], [128, 128, 128, 255])  # a kernel of zeros
    assert (pixels[2, :, 3] == 0).all()
    assert (pixels[3:, 3:, 3] == 0).all()  # places without a kernel


# What the parts compute


def test_drops_of_the_rate_are_told_by_the_evaluation_that_caused_them():
    lines = [
        {"step": 10, "learning_rate": 0.001},
        {"step": 20, "learning_rate": 0.01},  # a warm-up
        {"step": 25, "eval_top1_error": 50.0},
        {"step": 30, "learning_rate": 0.001},
        {"step": 40, "learning_rate": 0.001},
        {"step": 50, "learning_rate": 0.0},  # without an evaluation in between
        {"step": 60, "learning_rate": 0.0},
    ]
    assert curves.drops_of(lines) == [25, 40]


def test_a_line_that_is_still_being_written_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "train_loss": 2.0}\n{"step": 2, "tra')
    assert curves.read(path) == [{"step": 1, "train_loss": 2.0}]
    assert curves.read(tmp_path / "none") == []


@given(st.integers(0, 30), st.integers(0, 30), st.integers(0, 9))
def test_up_to_half_of_the_images_shown_are_wrong_ones(right, wrong, seed):
    labels = np.repeat([0, 1], [right, wrong])
    probabilities = np.tile([0.8, 0.2], (right + wrong, 1))
    places = examples.choose(probabilities, labels, seed)
    assert len(set(places)) == len(places) == min(8, right + wrong)
    assert labels[places].sum() >= min(wrong, 4)
    assert (1 - labels[places]).sum() >= min(right, 4)


def test_nearest_rows_are_those_of_float64():
    rng = np.random.default_rng(0)
    query, features = rng.normal(size=(3, 7)).astype(np.float32), rng.normal(size=(50, 7)).astype(np.float32)
    wanted = np.sqrt(((query[:, None].astype(np.float64) - features.astype(np.float64)) ** 2).sum(-1))
    places, distances = examples.nearest(query, features)
    np.testing.assert_array_equal(places, wanted.argsort(1)[:, :6])
    np.testing.assert_allclose(distances, np.sort(wanted, 1)[:, :6], rtol=1e-5)
    assert examples.nearest(query, features[:4])[0].shape == (3, 4)


def test_confusion_is_counted_class_by_class(tmp_path):
    labels, taken = np.array([0, 0, 0, 0, 1, 1, 2]), np.array([0, 1, 1, 2, 1, 1, 2])
    made = confusion.make(np.eye(4)[taken], labels, ["a", "b", "c", "d"], tmp_path)
    assert made.worst == [
        confusion.Class("a", 4, 3, 75.0, "b"),
        confusion.Class("b", 2, 0, 0.0, ""),
        confusion.Class("c", 1, 0, 0.0, ""),
    ]
    assert made.percent == pytest.approx(300 / 7)
    assert rows_of(tmp_path / "confusion.csv") == [
        {"label": "a", "taken_for": "a", "images": "1"},
        {"label": "a", "taken_for": "b", "images": "2"},
        {"label": "a", "taken_for": "c", "images": "1"},
        {"label": "b", "taken_for": "b", "images": "2"},
        {"label": "c", "taken_for": "c", "images": "1"},
    ]


def test_many_classes_have_a_confusion_matrix_without_names(tmp_path):
    made = confusion.make(np.eye(60), np.arange(60), list(map(str, range(60))), tmp_path)
    assert (len(made.worst), made.classes, made.percent) == (20, 60, 0)


def test_a_part_of_a_source_keeps_the_sources_numbers():
    part = examples.part(Split(40), 10, seed=1)
    assert len(part) == 10
    assert (np.diff(part.indices) > 0).all()
    images, labels = part.read(np.array([9, 0]))
    wanted, wanted_labels = Split(40).read(part.indices[[9, 0]])
    np.testing.assert_array_equal(images, wanted)
    np.testing.assert_array_equal(labels, wanted_labels)
    assert part.describe(3) == f"image {part.indices[3]}"
    np.testing.assert_array_equal(examples.part(Split(5), 10, seed=1).indices, np.arange(5))


# The page


class Split:
    """Random images as a source has them."""

    name = "tests"

    def __init__(self, count, size=16):
        rng = np.random.default_rng(count)
        self.images = rng.integers(0, 256, (count, size, size, 3), np.uint8)
        self.labels = rng.integers(0, 5, count).astype(np.int32)

    def __len__(self):
        return len(self.images)

    def read(self, indices):
        return list(self.images[indices]), self.labels[indices]

    def describe(self, index):
        return f"image {index}"


def weights_of(architecture=TINY, pca=None, names=NAMES):
    size = architecture[0].size
    images = np.zeros((1, size, size, architecture[0].channels), np.float32)
    params = AlexNet(architecture).init(jax.random.key(0), images)["params"]
    return convert.Weights(
        architecture=architecture,
        params=jax.tree.map(np.asarray, params),
        mean_image=np.full((size + 4, size + 4, 3), 127.5, np.float32),
        pca=pca or statistics_of().pca,
        mean_at="crop",
        views=10,
        classes="5 classes of tests",
        source="step 4 of the run tests",
        class_names=names,
    )


def config_of(**augment):
    config = quickstart.get_config()
    config.batch_size = 64
    config.augment.update(augment)
    return config


def write(folder, weights=None, config=None, **options):
    weights = weights or weights_of()
    size = len(weights.mean_image)
    data = Dataset(Split(21, size), Split(13, size), 5, list(NAMES), None)
    return report.write(folder, config=config or config_of(), data=data, weights=weights, **options)


RESULT = {
    "one_view": {"top1_error": 76.9, "top5_error": 12.3, "loss": 1.5, "examples": 13, "views": 1},
    "ten_views": {"top1_error": 74.6, "top5_error": 11.2, "loss": 1.4, "examples": 13, "views": 5},
    "steps": 4,
    "parameters": 4321,
    "seconds": 66.0,
}
METRICS = [
    {"step": 1, "train_loss": 1.7, "train_error": 80.0, "learning_rate": 0.01},
    {"step": 2, "eval_top1_error": 77.0, "eval_top5_error": 0.0, "eval_loss": 1.6},
    {"step": 3, "train_loss": 1.6, "train_error": 79.0, "learning_rate": 0.001},
]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run whose every part has data, with its page."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "result.json").write_text(json.dumps(RESULT))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in METRICS))
    assert write(folder, config=config_of(flip=True)) == folder / "report.html"
    return folder


class Page(html.parser.HTMLParser):
    """Sections, sources of images, links and text of a page; its open tags must be closed in their order."""

    VOID = frozenset({"meta", "link", "img", "source", "br"})

    def __init__(self, path):
        super().__init__()
        self.ids, self.sources, self.links, self.alts, self.text = [], [], [], [], {}
        self.open, self.section = [], None
        self.markup = path.read_text()
        self.feed(self.markup)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag not in self.VOID:
            self.open.append(tag)
        if "id" in attributes:
            self.ids.append(attributes["id"])
        if tag == "section":
            self.section = attributes["id"]
        self.sources += [attributes[name] for name in ("src", "srcset") if name in attributes]
        self.links += [attributes["href"]] if "href" in attributes else []
        self.alts += [attributes["alt"]] if tag == "img" else []

    def handle_endtag(self, tag):
        assert self.open.pop() == tag
        self.section = None if tag == "section" else self.section

    def handle_data(self, data):
        self.text[self.section] = f"{self.text.get(self.section, '')} {data}"


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_page_is_one_file_without_outside_links(finished):
    page = Page(finished / "report.html")
    assert tuple(page.ids) == SECTIONS
    assert set(page.links) == {"data:,", *(f"#{name}" for name in SECTIONS)}
    assert not re.search(r"https?://|@import|url\(|<script", page.markup)
    assert all(page.alts)
    for source in page.sources:
        kind, content = re.fullmatch(r"data:image/(png|jpeg|svg\+xml);base64,(.*)", source).groups()
        begins = {"png": b"\x89PNG", "jpeg": b"\xff\xd8", "svg+xml": b"<?xml"}[kind]
        assert base64.b64decode(content, validate=True).startswith(begins)
    # 3 curves and the confusion in two themes, 2 towers, 8 tests, 8 x 7 neighbours, 3 x 7 augmented.
    assert len(page.sources) == 2 * 4 + 2 + 8 + 8 * 7 + 3 * 7


def test_every_figure_is_there_as_png_and_its_numbers_as_csv(finished):
    figures = ("loss", "error", "rate", "kernels", "predictions", "neighbours", "confusion", "augmentations")
    tables = ("curves", "kernels", "predictions", "neighbours", "confusion", "classes", "augmentations")
    wanted = {f"{name}.png" for name in figures} | {f"{name}.csv" for name in tables}
    assert {path.name for path in (finished / "report").iterdir()} == wanted
    assert all((finished / "report" / f"{name}.png").read_bytes().startswith(b"\x89PNG") for name in figures)


def test_the_numbers_on_the_page_are_those_of_the_files(finished):
    page, folder = Page(finished / "report.html"), finished / "report"
    for number in ("76.9", "12.3", "74.6", "4,321", "37.5", "17.0", "40.7", "18.2"):
        assert number in page.text["errors"]
    assert "dropped at epoch 6.095" in page.text["curves"]  # step 2 of 64 / 21 epochs
    assert [row["learning_rate"] for row in rows_of(folder / "curves.csv")] == ["0.01", "", "0.001"]
    for row in rows_of(folder / "predictions.csv"):
        assert row["class"] in page.text["predictions"]
        assert f"{100 * float(row['probability']):.1f}%" in page.text["predictions"]
    for row in rows_of(folder / "neighbours.csv"):
        assert f"{float(row['distance']):.1f}" in page.text["neighbours"]
    for row in rows_of(folder / "classes.csv"):
        assert f"{float(row['error_percent']):.1f}" in page.text["confusion"]
    cells = rows_of(folder / "confusion.csv")
    wrong = sum(int(cell["images"]) for cell in cells if cell["label"] != cell["taken_for"])
    assert f"{100 * wrong / 13:.1f}%" in page.text["confusion"]
    for row in rows_of(folder / "augmentations.csv"):
        shift = [float(row[f"shift_{channel}"]) for channel in "RGB"]
        assert ("RGB {:+.1f} {:+.1f} {:+.1f}".format(*shift) in page.text["augmentations"]) == any(shift)
    assert "specialisation of the towers" in page.text["kernels"]
    specialised = kernels.specialisation(np.moveaxis(weights_of().params["conv1"]["kernel"], -1, 1))
    assert f"{specialised:.3f}" in page.text["kernels"]


def test_figure_4_shows_what_the_network_makes_of_its_images(finished):
    tested = Split(13)
    probabilities = weights_of().predict(tested.images)
    for row in rows_of(finished / "report" / "predictions.csv"):
        example, k = int(row["example"]), NAMES.index(row["class"])
        assert row["label"] == NAMES[tested.labels[example]]
        assert float(row["probability"]) == pytest.approx(float(probabilities[example, k]), rel=1e-4)
        assert row["is_label"] == str(row["class"] == row["label"])


def test_names_of_classes_are_text_and_not_markup(finished):
    assert "<b>bird" not in Page(finished / "report.html").markup


def test_a_shown_augmentation_is_the_one_that_its_numbers_tell(tmp_path):
    weights = weights_of()
    config = config_of(flip=True, pca_std=0.0)
    data = Split(21)
    strip = report.augmentations.make(
        config, weights, data.images[:3], np.arange(3), [NAMES[k] for k in data.labels[:3]], tmp_path
    )
    assert strip.columns == ["as stored", "crop alone", "mirror alone", "all, draw 1", "all, draw 2", "all, draw 3"]
    rows = rows_of(tmp_path / "augmentations.csv")
    assert {row["mirrored"] for row in rows} == {"True", "False"}
    assert {(row["top"], row["left"]) for row in rows if row["column"] == "mirror alone"} == {("2", "2")}
    shown = iter(shown for _, row in strip.rows for shown in row[1:])
    for row in rows:
        top, left = int(row["top"]), int(row["left"])
        wanted = data.images[int(row["example"]), top : top + 12, left : left + 12]
        wanted = wanted[:, ::-1] if row["mirrored"] == "True" else wanted
        assert next(shown).image == report.figures.image_uri(np.ascontiguousarray(wanted))


def test_a_run_tested_from_one_view_alone_and_never_logged_has_its_page(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({k: v for k, v in RESULT.items() if k != "ten_views"}))
    (tmp_path / "metrics.jsonl").write_text(json.dumps(METRICS[1]))
    text = Page(write(tmp_path)).text
    assert "76.9" in text["errors"]
    assert "views," not in text["errors"].replace("ten views", "")
    assert "The learning rate never dropped" in text["curves"]
    assert "chance" not in text["curves"]  # a run of before 2026-11-27 does not say


@pytest.mark.parametrize(
    ("lines", "at", "wanted"),
    [
        ([{"step": 64, "left_chance": 1.0}], 64, "left chance at epoch 195"),  # 64 steps of 64 / 21 epochs
        ([], None, "did not leave chance"),
    ],
)
def test_the_page_says_when_the_run_left_chance(lines, at, wanted, tmp_path):
    (tmp_path / "result.json").write_text(json.dumps(RESULT | {"left_chance_at_step": at}))
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in [*METRICS, *lines]))
    assert wanted in Page(write(tmp_path)).text["curves"]
    assert [row["step"] for row in rows_of(tmp_path / "report" / "curves.csv")] == [str(m["step"]) for m in METRICS]


def test_a_run_that_has_only_begun_is_told_as_such(tmp_path):
    page = Page(write(tmp_path, weights_of(names=None), output=tmp_path / "early.html", limit=9))
    assert "has not ended" in page.text["errors"]
    assert "no metrics yet" in page.text["curves"]
    assert "9 of 13 evaluation images, drawn at random" in " ".join(page.text["confusion"].split())
    assert (tmp_path / "early" / "kernels.csv").exists()


def test_grey_images_say_nothing_about_specialisation(tmp_path):
    grey = ColorPCA(np.eye(3, dtype=np.float32), np.array([0.3, 0, 0], np.float32))
    assert kernels.make(weights_of(pca=grey), tmp_path).grey_data
    assert not kernels.make(weights_of(), tmp_path).grey_data


@pytest.mark.parametrize(
    ("architecture", "said", "shares"),
    [
        (replace(TINY, Input, Input(12, channels=1, towers=2)), "its kernels have no colour", [""] * 8),
        ((Input(12), *TINY[1:]), "has one tower", None),
        ((TINY[0], *TINY[7:]), "no kernels to show", []),  # no convolution
    ],
)
def test_networks_with_less_to_show_have_a_page_that_says_so(tmp_path, architecture, said, shares):
    text = Page(write(tmp_path, weights_of(architecture))).text["kernels"]
    assert said in text
    assert "specialisation of the towers" not in text
    table = tmp_path / "report" / "kernels.csv"
    if shares is None:
        assert all(0 < float(row["colour_share"]) < 1 for row in rows_of(table))
    else:
        assert [row["colour_share"] for row in (rows_of(table) if table.exists() else [])] == shares


# The command


def run(*arguments):
    parser = argparse.ArgumentParser()
    command.add(parser.add_subparsers())
    options = parser.parse_args(["report", *arguments])
    options.run(options)


@pytest.mark.parametrize("output", ["page.htm", "none/page.html"])
def test_a_place_that_cannot_be_written_is_told_at_once(tmp_path, output):
    with pytest.raises(UsageError, match="--output is"):
        run("--workdir=none", f"--output={tmp_path / output}")


def test_the_command_opens_the_data_of_the_run_and_writes_its_page(tmp_path, monkeypatch, capsys):
    split = Split(10)
    for where in ("train", "val"):
        for k, (image, label) in enumerate(zip(split.images, split.labels, strict=True)):
            (tmp_path / "data" / where / f"class {label}").mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "data" / where / f"class {label}" / f"{k}.png"), image)
    config = config_of()
    config.dataset, config.image_size = f"folder:{tmp_path / 'data'}", 16
    config_lib.save(config, tmp_path / "config.json")
    (tmp_path / setup.CONTENTS).write_text(json.dumps(setup.open_data(config).contents()))
    monkeypatch.setattr(convert, "read", lambda path, checkpoint: weights_of())
    run(f"--workdir={tmp_path}", f"--output={tmp_path / 'page.html'}")
    assert f"Wrote: {tmp_path / 'page.html'}" in capsys.readouterr().out
    assert "10 images" in Page(tmp_path / "page.html").text["confusion"]


def test_a_folder_without_a_run_is_told_at_once(tmp_path):
    with pytest.raises(UsageError, match="holds no run"):
        run(f"--workdir={tmp_path}")
