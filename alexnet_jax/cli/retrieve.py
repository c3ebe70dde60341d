"""The commands features, retrieve and codes: search for similar images (paper, section 6.1)."""

from alexnet_jax.cli import common
from alexnet_jax.files import local


def add(commands) -> None:
    """Adds features, retrieve and codes to the commands."""
    features = commands.add_parser("features", help="write a layer's output for every image of a split as an .npz file")
    common.add_network(features)
    features.add_argument("--dataset", required=True, help="the data set, as config.dataset")
    features.add_argument("--split", default="train", help="split of the data set; default train")
    features.add_argument("--data_dir", default="", help="TFDS's folder; default ~/tensorflow_datasets")
    features.add_argument("--layer", help="any layer of the network; default the last hidden layer")
    features.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="data type in the file")
    features.add_argument("--batch_size", type=common.positive, default=64, help="images at a time")
    features.add_argument("--output", required=True, help="the .npz file to write")
    features.set_defaults(run=_features)

    retrieve = commands.add_parser("retrieve", help="the images of an index that are nearest to the given images")
    retrieve.add_argument("images", nargs="+", metavar="IMAGE", help="an image file")
    common.add_network(retrieve)
    retrieve.add_argument("--index", required=True, help="a file that features wrote, with the same network")
    retrieve.add_argument(
        "--codes", help="a file that codes wrote: search only among the 100 images with the nearest codes"
    )
    retrieve.add_argument("--top", type=common.positive, default=6, help="number of images to find; default 6")
    retrieve.set_defaults(run=_retrieve)

    codes = commands.add_parser("codes", help="write short binary codes of an index's images, from an auto-encoder")
    codes.add_argument("--index", required=True, help="a file that features wrote")
    codes.add_argument("--bits", type=int, default=128, help="number of bits of a code, a multiple of 32")
    codes.add_argument("--seed", type=int, default=0, help="seed of the auto-encoder")
    codes.add_argument("--output", required=True, help="the .npz file to write")
    codes.set_defaults(run=_codes)


def _features(options):
    from alexnet_jax.evaluation.trained import Trained, check_layer, last_hidden
    from alexnet_jax.inspection import features

    path = common.output(options.output, ".npz")
    common.set_up_devices()
    trained = Trained.of(common.read_network(options), options.batch_size)
    layer = options.layer or last_hidden(trained.weights.architecture)
    check_layer(trained.weights.architecture, layer)
    dataset = common.open_split(options.dataset, options.data_dir, options.split, trained.image_size)
    features.write(path, trained, dataset.evaluation, layer, dataset.class_names, options.dtype)
    count, width = features.read(path).vectors.shape
    print(f"Wrote: {path} ({path.stat().st_size / 1e6:.1f} MB), {width} numbers of {layer} for {count:,} images")


def _retrieve(options):
    from alexnet_jax.evaluation.trained import Trained
    from alexnet_jax.inspection import codes, features, retrieve

    common.set_up_devices(convolutions=False)
    index = features.read(options.index)
    short = codes.read(options.codes, index) if options.codes else None
    weights = common.read_network(options)
    index.check_network(weights)
    trained = Trained.of(weights, min(len(options.images), 64))  # so that a few images do not need a whole batch
    squares = _images(options.images, trained.image_size)
    queries, top = trained.features(squares, index.layer), min(options.top, len(index))
    if short:
        stored, encoder = short
        _, candidates = codes.nearest(encoder.encode(queries), stored, max(top, codes.SHORTLIST))
        squares, indices = retrieve.among(queries, index.vectors, candidates, top)
        distances = squares**0.5
    else:
        distances, indices = retrieve.nearest(queries, index.vectors, top)
    for image, near, found in zip(options.images, distances, indices, strict=True):
        print(f"{image}: nearest by {index.layer} among {len(index):,} images of {index.split}:")
        for distance, i in zip(near, found, strict=True):
            print(f"  {distance:10.4g}  {index.class_of(i)}  {index.place_of(i)}")


def _codes(options):
    from alexnet_jax.inspection import codes, features

    path = common.output(options.output, ".npz")
    common.set_up_devices(convolutions=False)
    codes.check_bits(options.bits)
    index = features.read(options.index)
    encoder, stored, measured = codes.make(index.vectors, options.bits, options.seed)
    codes.write(path, stored, encoder, index)
    print(f"Wrote: {path} ({path.stat().st_size / 1e6:.1f} MB)")
    print(f"Bytes per image: {stored.shape[1]} as a code, {index.vectors[0].nbytes:,} as features")
    print(f"Queries: {measured.queries} images that the auto-encoder did not learn from")
    print(f"Recall@10 among the first {codes.SHORTLIST} by Hamming distance: {measured.recall:.3f}")
    print(f"Queries/s: by codes {measured.by_codes:,.0f}, exact {measured.exact:,.0f}")


def _images(paths, size):

    import numpy as np

    from alexnet_jax.data.any_format import read_file
    from alexnet_jax.data.images import ImageError, decode_square
    from alexnet_jax.errors import UsageError

    squares = []
    for path in paths:
        try:
            squares.append(decode_square(read_file(local(path, "the image")), size))
        except OSError as error:
            raise UsageError(f"{path} cannot be read ({error.strerror}). Give the path of an image.") from error
        except ImageError as error:
            raise UsageError(f"{path} does not decode as an image ({error}). Give another file.") from error
    return np.stack(squares)
