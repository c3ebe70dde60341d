"""Data sets in object stores: prepared sets and sets of TFDS are read from the local cache, and `prepare` puts them."""

import hashlib
import shutil
from pathlib import Path

import tensorflow_datasets as tfds

from alexnet_jax.data import imagenet
from alexnet_jax.data import prepare as local
from alexnet_jax.errors import UsageError
from alexnet_jax.files import stores
from alexnet_jax.files.copies import cache
from alexnet_jax.files.datasets import CachedFolder, put_folder

_INFO = "dataset_info.json"


def open_builder(name: str, data_dir: str, image_size: int) -> tuple[tfds.core.DatasetBuilder, CachedFolder]:
    """The builder of a data set in an object store, and the folder that gets its record files when they are needed.

    Args:
      name: of a prepared set, or of a set that TFDS made in array_record files.
      data_dir: gs://... or s3://..., laid out as TFDS's folder.
      image_size: side of the images of a prepared set, in pixels.

    Raises:
      UsageError: if there is no such set, or the store cannot be read.
    """
    root = stores.check_address(data_dir, "--config.data_dir")
    prepared = stores.join(root, local.relative_folder(name, image_size))
    cached = CachedFolder(prepared)
    if _INFO not in cached.infos:
        versions = [path for path in stores.listing(stores.join(root, name)) if path.endswith(f"/{_INFO}")]
        if not versions:
            raise UsageError(
                f"{name} is not in {data_dir}: there is neither {prepared}/{_INFO} nor a set of TFDS with this name. "
                f"Prepare it with: python -m alexnet_jax prepare --source=SOURCE --dataset={name} "
                f"--data_dir={data_dir} --image_size={image_size}"
            )
        cached = CachedFolder(stores.join(root, f"{name}/{max(versions).removesuffix(f'/{_INFO}')}"))
    about = [path for path in cached.infos if ".array_record-" not in path and ".tfrecord-" not in path]
    cached.ask(about)
    for path in about:
        cached.get(path)
    builder = tfds.builder_from_directory(cached.folder)
    if builder.info.file_format.name != "ARRAY_RECORD":
        raise UsageError(
            f"{cached.address} is stored as {builder.info.file_format.value}; accepted is array_record. Make it again."
        )
    return builder, cached


def prepare(
    source: str,
    data_dir: str = "",
    image_size: int = 256,
    *,
    dataset: str = imagenet.NAME,
    encoding: str = "jpeg",
    **options,
) -> str | Path:
    """As prepare.prepare, with all its arguments, also from and to addresses gs://... and s3://...

    Originals at an address are first copied to the local cache. A set for an address is made in the cache, and then
    put; its dataset_info.json last, so that it is complete or not there.

    Raises:
      UsageError: as prepare.prepare; or if a store cannot be read or written, or the originals do not fit the cache.
    """
    kind, _, place = source.partition(":")
    if stores.is_address(data_dir):
        root = stores.check_address(data_dir, "--data_dir")
        final = stores.join(root, local.relative_folder(dataset, image_size))
        if stores.exists(stores.join(final, _INFO)):
            stored = local.encoding_of(open_builder(dataset, data_dir, image_size)[0])
            if stored != encoding:
                raise UsageError(
                    f"{final} was made with --encoding={stored}, but now --encoding={encoding} was given. Remove that "
                    "folder, or give another --data_dir."
                )
            print(f"Already prepared: {final}; to make it again, remove that folder.")
            return final
        stores.check_rights(root)
    if stores.is_address(place):
        originals = CachedFolder(stores.check_address(place, "--source"))
        if not originals.infos:
            raise UsageError(f"--source is {source}, but there is nothing. Give an address with images.")
        source = f"{kind}:{originals.get_all()}"
    options |= {"dataset": dataset, "encoding": encoding}
    if not stores.is_address(data_dir):
        return local.prepare(source, data_dir, image_size, **options)
    made_in = cache() / "prepare" / hashlib.sha256(root.encode()).hexdigest()[:16]
    made = local.prepare(source, str(made_in), image_size, **options)
    print(f"Putting it to {final}", flush=True)
    put_folder(made, final, last=_INFO)
    shutil.rmtree(made)
    return final
