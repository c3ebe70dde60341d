"""What is special about ImageNet: labels in the names of files, odd files, and how to get the data set."""

import numpy as np
import pytest
import small_imagenet as small
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from alexnet_jax.data import imagenet, labels, sources
from alexnet_jax.data.images import ImageError, decode_square
from alexnet_jax.errors import UsageError


def test_the_label_of_a_validation_file_by_its_number_is_that_by_the_alphabet(tmp_path):
    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in np.random.default_rng(0).permutation(50_000) + 1]
    (tmp_path / "val.tar").write_bytes(small.tar(dict.fromkeys(names, b"")))
    by_the_alphabet = imagenet_common.get_validation_labels(str(tmp_path / "val.tar"))
    assert by_the_alphabet == {name: labels.synset_of(name) for name in names}


def test_odd_files_become_what_tfds_stores():
    for name in (small.CMYK, small.PNG):
        content = small.encoded(name, (40, 50))
        stored = imagenet.as_tfds_stores(name, content)
        assert stored[:2] == b"\xff\xd8"
        assert stored != content
        near = np.abs(decode_square(stored, 40).astype(int) - small.image(name, (40, 50))[:, 5:45])
        assert near.mean() < 3
    assert imagenet.as_tfds_stores("n01440764_1.JPEG", content) is content
    for name in (small.CMYK, small.PNG):
        with pytest.raises(ImageError):
            imagenet.as_tfds_stores(name, b"\xff\xd8 broken")


def test_a_label_follows_from_the_class_or_from_the_name():
    assert imagenet.label_of("n01443537_10026.JPEG", "n01443537", "here") == 1
    assert imagenet.label_of("of my own.jpg", "n15075141", "here") == 999
    first = labels.synsets().index("n01751748")
    assert imagenet.label_of("ILSVRC2012_val_00000001.JPEG", "n01751748", "here") == first
    assert imagenet.label_of("ILSVRC2012_val_00000001.JPEG", None, "here") == first


@pytest.mark.parametrize(
    ("name", "synset", "message"),
    [
        (
            "n01440764_10026.JPEG",
            "n01443537",
            "holds n01440764_10026.JPEG in the class n01443537, but by its name it belongs to the class n01440764. ",
        ),
        ("1.jpg", "cat", "holds 'cat', which is not one of the 1000 classes of imagenet2012"),
        ("n00000000_1.JPEG", None, "holds 'n00000000', which is not one of the 1000 classes"),
        ("1.jpg", None, "holds 1.jpg; accepted are ILSVRC2012_val_00000001.JPEG to"),
    ],
)
def test_a_file_that_has_no_label_or_two_is_named(name, synset, message):
    with pytest.raises(UsageError) as error:
        imagenet.label_of(name, synset, "here")
    assert str(error.value).startswith(f"here {message}")


def test_where_it_is_not_prepared_the_message_is_the_command_that_prepares_it(tmp_path):
    with pytest.raises(UsageError) as error:
        sources.open_dataset("imagenet2012", str(tmp_path), image_size=48, train_split="train", eval_split="")
    message = str(error.value)
    assert message.startswith(f"imagenet2012 at 48 pixels is not in {tmp_path}/imagenet2012_square/48/5.1.0. ")
    assert f"python -m alexnet_jax prepare --source=tars:FOLDER --data_dir={tmp_path} --image_size=48\n" in message
    assert "https://image-net.org/download-images" in message
