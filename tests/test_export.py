"""What is exported gives the network's probabilities, in JAX and in TensorFlow, for any number of images."""

import dataclasses
import pathlib
import re

import flax.struct
import jax
import jax.export
import numpy as np
import pytest
import tensorflow as tf
from test_cli import message_of
from tiny import TINY, statistics_of

from alexnet_jax import QUICKSTART, AlexNet, cli, convert, export, with_classes
from alexnet_jax import config as config_lib
from alexnet_jax.convert.weights import expected
from alexnet_jax.errors import UsageError
from alexnet_jax.evaluation.errors import predict
from alexnet_jax.training.checkpoint import Checkpoints
from configs import quickstart


def random_weights(architecture=TINY, seed=0, mean_at="crop"):
    rng = np.random.default_rng(seed)
    size = architecture[0].size + 4
    return convert.Weights(
        architecture=architecture,
        params=jax.tree.map(lambda a: rng.normal(0, 0.1, a.shape).astype(np.float32), expected(architecture)),
        mean_image=rng.uniform(0, 255, (size, size, 3)).astype(np.float32),
        pca=None,
        mean_at=mean_at,
        views=10,
        classes="some classes in some order",
        source=f"seed {seed}",
    )


def images(n, size=16):
    return np.random.default_rng(n).integers(0, 256, (n, size, size, 3), np.uint8)


compiled_predict = jax.jit(predict, static_argnames=("network", "views", "mean_at"))


def answers(weights, images, views=1):
    network = AlexNet(weights.architecture)
    return compiled_predict(
        weights.params, images, weights.mean_image, network=network, views=views, mean_at=weights.mean_at
    )


def load(path, format):
    """As export.LOADING says."""
    names = {"jax": jax, "tf": tf, "pathlib": pathlib}
    return lambda images: np.asarray(eval(export.LOADING[format].format(path=str(path)), names | {"images": images}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """random_weights() exported, by format."""
    folder = tmp_path_factory.mktemp("exported")
    for format in export.LOADING:
        export.export(random_weights(), folder / format, format=format)
    assert {path.name for path in folder.iterdir()} == set(export.LOADING)
    return {format: folder / format for format in export.LOADING}


@pytest.mark.parametrize("format", export.LOADING)
def test_an_export_gives_the_network_s_probabilities_at_any_batch_size(format, exported):
    for n in (1, 2, 5):
        wanted = answers(random_weights(), images(n))
        np.testing.assert_allclose(load(exported[format], format)(images(n)), wanted, rtol=1e-5)
        assert np.ptp(wanted) > 1e-3  # of a network that sees something


@pytest.mark.parametrize("format", export.LOADING)
def test_ten_views_and_the_mean_s_place_are_part_of_an_export(format, tmp_path):
    weights = random_weights(mean_at="center")
    export.export(weights, tmp_path / "net", format=format, views=10)
    given = load(tmp_path / "net", format)(images(3))
    np.testing.assert_allclose(given, answers(weights, images(3), 10), rtol=1e-5)
    for other in (
        answers(weights, images(3), 1),
        answers(dataclasses.replace(weights, mean_at="crop"), images(3), 10),
    ):
        assert np.abs(given / other - 1).max() > 1e-3


def test_a_file_for_jax_takes_bytes_and_runs_on_cpus_gpus_and_tpus(exported):
    loaded = jax.export.deserialize(exported["stablehlo"].read_bytes())
    assert str(loaded.in_avals) == "(ShapedArray(uint8[n,16,16,3]),)"
    assert str(loaded.out_avals) == "(ShapedArray(float32[n,5]),)"
    assert loaded.platforms == ("cpu", "cuda", "tpu")


def test_a_folder_for_tensorflow_takes_bytes_and_keeps_its_weights_as_variables(exported):
    weights = random_weights()
    signature = tf.saved_model.load(exported["savedmodel"]).signatures["serving_default"]
    _, takes = signature.structured_input_signature
    assert takes == {"images": tf.TensorSpec((None, 16, 16, 3), tf.uint8, "images")}
    gives = signature.structured_outputs["probabilities"]
    assert (gives.shape.as_list(), gives.dtype) == ([None, 5], tf.float32)
    stored = tf.train.list_variables(str(exported["savedmodel"] / "variables" / "variables"))
    assert sorted(shape for name, shape in stored if name.startswith("variables_in_order")) == sorted(
        list(a.shape) for a in (*jax.tree.leaves(weights.params), weights.mean_image)
    )


def test_a_file_that_gives_other_numbers_is_reported_and_left_there(tmp_path, monkeypatch):
    weights = random_weights()
    bias = weights.params["fc4"]["bias"].tobytes()

    def write_damaged(path, content):
        assert content.count(bias) == 1
        path.write_bytes(content.replace(bias, bias[::-1]))

    monkeypatch.setattr(export, "write_whole", write_damaged)
    with pytest.raises(UsageError, match=r"net was written, but .* In a batch of 1, .* Do not use this file"):
        export.export(weights, tmp_path / "net", format="stablehlo")
    assert (tmp_path / "net").exists()


@pytest.mark.parametrize("format", export.LOADING)
def test_the_comparison_sees_a_mean_that_is_off_by_a_level_and_numbers_that_are_none(format, exported):
    weights, path = random_weights(), exported[format]
    brighter = dataclasses.replace(weights, mean_image=weights.mean_image + 1)
    with pytest.raises(UsageError, match="accepted is 1e-05"):
        export.check(brighter, path, format=format, views=1)
    none = dataclasses.replace(weights, mean_image=weights.mean_image * np.nan)
    with pytest.raises(UsageError, match="off by nan"):
        export.check(none, path, format=format, views=1)


@pytest.mark.parametrize("format", export.LOADING)
def test_an_export_replaces_an_earlier_one_when_it_is_complete(format, tmp_path, monkeypatch):
    path, first, second = tmp_path / "net", random_weights(seed=1), random_weights(seed=2)
    monkeypatch.setattr(export, "check", lambda *_, **__: None)
    export.export(first, path, format=format)
    export.export(second, path, format=format)
    assert [found.name for found in tmp_path.iterdir()] == ["net"]

    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(export, "_staged" if format == "stablehlo" else "_save_for_tensorflow", stop)
    with pytest.raises(KeyboardInterrupt):
        export.export(first, path, format=format)
    assert [found.name for found in tmp_path.iterdir()] == ["net"]
    np.testing.assert_allclose(load(path, format)(images(2)), answers(second, images(2)), rtol=1e-5)


def test_paths_that_cannot_be_written_are_refused_before_the_weights_are_read(tmp_path, capsys):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    none = f"--weights={tmp_path}/none.safetensors"
    for output, format, message in [
        ("no/net", "stablehlo", f"the folder {tmp_path}/no does not exist. Create it"),
        ("no/net", "savedmodel", f"the folder {tmp_path}/no does not exist. Create it"),
        ("folder", "stablehlo", f"{tmp_path}/folder is a folder; accepted is the path of a file"),
        ("folder", "savedmodel", f"{tmp_path}/folder exists and is not a SavedModel; accepted is a new name"),
        ("file", "savedmodel", f"{tmp_path}/file exists and is not a SavedModel"),
        ("net", "savedmodel", f"{tmp_path}/none.safetensors does not exist"),
    ]:
        assert message in message_of(capsys, "export", none, f"--output={tmp_path}/{output}", f"--format={format}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(
    "wrong", [["--format=onnx"], ["--views=3"], ["--workdir=run"], ["--checkpoint=first"]], ids=lambda w: w[0]
)
def test_wrong_arguments_end_with_usage(wrong, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["export", "--weights=w.safetensors", "--output=net", *wrong])
    assert stop.value.code == 2
    assert "usage: python -m alexnet_jax export" in capsys.readouterr().err


@pytest.mark.parametrize("format", export.LOADING)
def test_the_command_tells_what_it_wrote_and_how_to_use_it(format, tmp_path, capsys):
    weights, path = random_weights(), tmp_path / "net"
    convert.write(weights, tmp_path / "w.safetensors")
    cli.main(["export", f"--weights={tmp_path}/w.safetensors", f"--output={path}", f"--format={format}"])
    read, wrote, *others = capsys.readouterr().out.splitlines()
    assert read == "Read: seed 0"
    assert re.fullmatch(rf"Wrote: {path} \(0\.\d MB\)", wrote)
    assert others == [
        f"Input: images (n, 16, 16, 3) uint8: {weights.preprocessing}",
        "Output: probabilities (n, 5) float32; views of an image: 1",
        "Classes: some classes in some order",
        "Checked: for random images, one and three at a time, the file gives the same probabilities as the network",
        f"To use it: {export.LOADING[format].format(path=str(path))}",
    ]


@flax.struct.dataclass
class State:
    step: jax.Array
    params: dict


@pytest.mark.parametrize(("which", "step"), [("last", 4), ("best", 3)])
def test_a_run_s_checkpoint_is_chosen(which, step, tmp_path, capsys, monkeypatch):
    architecture = with_classes(QUICKSTART, 9)
    config_lib.save(quickstart.get_config(), tmp_path / "config.json")
    statistics_of(28).save(tmp_path / "statistics.npz")
    of_step = {step: random_weights(architecture, seed=step) for step in (3, 4)}
    with Checkpoints(tmp_path) as checkpoints:
        for number, weights in of_step.items():
            state = State(jax.numpy.int32(number), jax.tree.map(jax.numpy.asarray, weights.params))
            checkpoints.save(state, error=float(number), notes={"num_classes": 9})
    exports = []
    monkeypatch.setattr(export, "export", lambda *given, **options: exports.append((*given, options)))
    cli.main(["export", f"--workdir={tmp_path}", f"--checkpoint={which}", f"--output={tmp_path}/net", "--views=10"])
    ((weights, path, options),) = exports
    assert (path, options) == (tmp_path / "net", {"format": "stablehlo", "views": 10})
    jax.tree.map(np.testing.assert_array_equal, weights.params, of_step[step].params)
    assert weights.architecture == architecture
    assert f"Read: step {step}" in capsys.readouterr().out


def test_a_file_of_weights_has_no_best_checkpoint(capsys):
    arguments = "export", "--weights=w.safetensors", "--checkpoint=best", "--output=net"
    assert message_of(capsys, *arguments).startswith(
        "error: --checkpoint=best is only for --workdir, not for --weights."
    )
