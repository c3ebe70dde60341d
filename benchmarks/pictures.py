"""Made-up photographs, for a machine that has no images: python benchmarks/pictures.py FOLDER COUNT"""

import sys
from pathlib import Path

import cv2
import numpy as np

CLASSES = 10


def draw(folder: Path, count: int):
    """Writes `count` JPEGs of 500 x 375 pixels and about 100 KB as folder/train/CLASS/FILE, but every seventh in val/.

    Noise at several scales, because that is what makes a photograph's file as large as it is.
    """
    rng = np.random.default_rng(0)
    for i in range(count):
        picture = np.full((375, 500, 3), 127.0)
        for cells, strength in ((4, 60), (16, 40), (64, 25), (256, 25)):
            coarse = rng.normal(0, strength, (cells * 3 // 4, cells, 3))
            picture += cv2.resize(coarse, (500, 375), interpolation=cv2.INTER_CUBIC)
        path = folder / ("val" if i % 7 == 6 else "train") / f"class{i % CLASSES}" / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not cv2.imwrite(str(path), picture.clip(0, 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, 90]):
            sys.exit(f"error: {path} cannot be written.")


if __name__ == "__main__":
    draw(Path(sys.argv[1]), int(sys.argv[2]))
