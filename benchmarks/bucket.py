"""Images/s of the loader from an S3 server on this machine beside a local disk: python benchmarks/bucket.py FOLDER

FOLDER is for made-up photographs, the data prepared from them, and the cache. Needs requirements-dev.txt.
"""

import os
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pictures
from shared import say

from alexnet_jax.data import batches, cloud, hide_accelerators_from_tensorflow, sources
from alexnet_jax.files import datasets, stores

IMAGES, SIZE, BATCH, EPOCHS = 6000, 256, 64, 3
PORT = "5757"
SERVER = "import sys; from moto.server import main; main(['-H', '127.0.0.1', '-p', sys.argv[1]])"


def epochs_of(data_dir):
    """Yields the images/s of each epoch, and the memory in MB that the process has used at most by then."""
    data = sources.open_dataset("pictures", str(data_dir), image_size=SIZE, train_split="train", eval_split="")
    steps = len(data.train) // BATCH
    order = batches.Order(len(data.train), seed=0)
    for epoch in range(EPOCHS):
        began, count = time.perf_counter(), 0
        steps_of = {"start": epoch * steps, "stop": (epoch + 1) * steps}
        for batch in batches.train_batches(data.train, order=order, batch_size=BATCH, image_size=SIZE, **steps_of):
            count += len(np.asarray(batch["label"]))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        yield count / (time.perf_counter() - began), peak


def main(folder):
    """Prepares the data once, serves it, and prints a table."""
    os.environ |= {
        "AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{PORT}", "ALEXNET_CACHE_DIR": str(folder / "cache"),
    }  # fmt: skip
    hide_accelerators_from_tensorflow()
    if not (folder / "images").exists():
        say(f"{IMAGES} photographs")
        pictures.draw(folder / "images", IMAGES)
    options = {"image_size": SIZE, "dataset": "pictures", "workers": 1}
    made = cloud.prepare(f"folder:{folder / 'images'}", str(folder / "data"), **options)
    server = subprocess.Popen([sys.executable, "-c", SERVER, PORT], stderr=subprocess.DEVNULL)
    try:
        stores.attempt("s3://bucket", lambda system: system.mkdir("s3://bucket"))
        address = f"s3://bucket/data/{made.relative_to(folder.absolute() / 'data')}"
        datasets.put_folder(made, address, last="dataset_info.json")
        size = sum(info["size"] for info in stores.listing(address).values()) / 1e6
        print(f"{IMAGES} photographs, {SIZE} pixels, {size:.0f} MB\n")
        print("| epoch | images/s | peak memory (MB) |\n|---|---|---|")
        for name, data_dir in (("local disk", folder / "data"), ("S3 on loopback", "s3://bucket/data")):
            for epoch, (rate, peak) in enumerate(epochs_of(data_dir), 1):
                print(f"| {name}, {epoch} | {rate:.0f} | {peak:.0f} |", flush=True)
    finally:
        server.kill()
        server.wait()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
