"""ImageNet (ILSVRC-2012), made once from its two tars into square pictures in array_record files.

One pass over the training tar also gives the mean image and the colour PCA, which
lie beside the records as metadata of the dataset.
"""

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf
import tensorflow_datasets as tfds
from tensorflow_datasets.datasets.imagenet2012 import imagenet_common

from alexnet_jax.config import UsageError
from alexnet_jax.data.pictures import decode_square
from alexnet_jax.data.statistics import Statistics, Sums

TARS = ("ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar")
JPEG_QUALITY = 95
_THREADS = 8  # TensorFlow decodes outside Python's lock


class _StatisticsFile(tfds.core.Metadata):
    """The statistics of the training split, as a file beside the records."""

    NAME = "statistics.npz"

    def save_metadata(self, data_dir):
        self["statistics"].save(Path(data_dir) / self.NAME)

    def load_metadata(self, data_dir):
        """Does nothing: TFDS calls it for a metadata.json only. read_statistics reads the file."""


class Imagenet2012Square(tfds.builder_cls("imagenet2012")):
    """TFDS's imagenet2012, each picture a square of one size; the builder config's name is the size."""

    BUILDER_CONFIGS: list[tfds.core.BuilderConfig] = []  # noqa: RUF012 (the name and type that TFDS reads)

    def __init__(self, *, image_size: int, **arguments):
        self._image_size = image_size
        self._sums = Sums(image_size)
        config = tfds.core.BuilderConfig(name=str(image_size), version=self.VERSION)
        super().__init__(config=config, file_format="array_record", **arguments)

    def _info(self):
        square = (self._image_size, self._image_size, 3)
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=square, encoding_format="jpeg"),
                    "label": tfds.features.ClassLabel(names_file=imagenet_common.label_names_file()),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=_StatisticsFile(),
        )

    def _split_generators(self, dl_manager):
        # The test split has no labels.
        return [split for split in super()._split_generators(dl_manager) if split.name != "test"]

    def _generate_examples(self, archive, validation_labels=None, **_):
        examples = super()._generate_examples(archive, validation_labels=validation_labels)
        # A tar is a stream: a file is read before the next is asked for. Only the decoding is spread over threads.
        examples = ((key, {**example, "image": example["image"].read()}) for key, example in examples)
        with ThreadPoolExecutor(_THREADS) as pool:
            while chunk := list(itertools.islice(examples, 16 * _THREADS)):
                for key, example, image in pool.map(self._square, chunk):
                    if validation_labels is None:
                        self._sums.add(image[None])
                    yield key, example
        if validation_labels is None:
            self.info.metadata["statistics"] = self._sums.statistics()

    def _square(self, keyed_example):
        key, example = keyed_example
        try:
            image = decode_square(example["image"], self._image_size)
        except tf.errors.InvalidArgumentError as error:
            raise UsageError(
                f"{example['file_name']} does not decode as a picture ({error.message.splitlines()[0]}). "
                "Fetch the tar again and compare its checksum."
            ) from error
        encoded = tf.io.encode_jpeg(image, quality=JPEG_QUALITY).numpy()
        return key, {**example, "image": encoded}, image.numpy()


def prepare(data_dir: str, image_size: int, tars: str = "") -> Path:
    """Makes the dataset from ImageNet's tars, if it is not there already; with a progress bar.

    Args:
      data_dir: where TFDS keeps its datasets; "" for its default, ~/tensorflow_datasets.
      image_size: side of the pictures in pixels; the paper's 256.
      tars: folder of the two tars; "" for data_dir/downloads/manual, where TFDS looks for them.

    Returns:
      The folder of the records. It has its name only when it is whole.

    Raises:
      UsageError: if a tar is missing or a picture does not decode.
    """
    builder = Imagenet2012Square(image_size=image_size, data_dir=data_dir or None)
    if not builder.is_prepared():
        root = Path(builder._data_dir_root).expanduser()
        folder = Path(tars).expanduser() if tars else root / "downloads" / "manual"
        missing = [name for name in TARS if not (folder / name).is_file()]
        if missing:
            raise UsageError(f"{' and '.join(missing)} not found in {folder}. {_how_to_get_it(root, image_size)}")
        builder.download_and_prepare(download_config=tfds.download.DownloadConfig(manual_dir=folder))
    return Path(builder.data_dir)


def open_prepared(data_dir: str, image_size: int) -> tfds.core.DatasetBuilder:
    """The builder of the prepared dataset. Raises UsageError where it is not there."""
    builder = Imagenet2012Square(image_size=image_size, data_dir=data_dir or None)
    if not builder.is_prepared():
        root = Path(builder._data_dir_root).expanduser()
        raise UsageError(
            f"imagenet2012 at {image_size} pixels is not in {builder.data_dir}. {_how_to_get_it(root, image_size)}"
        )
    return builder


def read_statistics(builder: tfds.core.DatasetBuilder) -> Statistics:
    """The statistics that `prepare` stored beside the records."""
    return Statistics.load(Path(builder.data_dir) / _StatisticsFile.NAME)


def _how_to_get_it(root: Path, image_size: int) -> str:
    return (
        f"Get {TARS[0]} (138 GB) and {TARS[1]} (6.3 GB) from https://image-net.org/download-images, "
        f"put both into {root / 'downloads' / 'manual'}, and run once\n"
        f"  python -m alexnet_jax prepare --data_dir={root} --image_size={image_size}"
    )
