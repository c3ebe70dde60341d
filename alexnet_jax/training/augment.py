"""Augmentation and views (paper, section 4.1): pure functions of a key and one image.

An image is (H, W, C), pixels in 0..255. For a batch, use `jax.vmap` over keys and images.
"""

import dataclasses
import math
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

MeanAt = Literal["crop", "center"]


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ColorPCA:
    """Principal components of the colours of a training set, for pixels scaled to [0, 1].

    eigenvectors: (3, 3), the columns are p1 p2 p3, in the order of their eigenvalues, largest first.
    eigenvalues: (3,), the variances along them.
    """

    eigenvectors: jax.Array
    eigenvalues: jax.Array


def crop(key, image, size, min_area=1.0):
    """The crop that a run trains on: random_resized_crop if min_area is below 1, else random_crop; central without key.

    Arguments and result as there.
    """
    if key is None:
        return center_crop(image, size)
    return random_crop(key, image, size) if min_area == 1 else random_resized_crop(key, image, size, min_area)


def random_crop(key, image, size):
    """Cuts a square out of an image, at a place drawn uniformly.

    Args:
      key: a jax.random key.
      image: (H, W, C) array.
      size: side of the square, at most H and W; offsets are 0..H-size and 0..W-size inclusive.

    Returns:
      (size, size, C) array of the same dtype.

    Raises:
      ValueError: if the square does not fit into the image, or the image is not (H, W, C).
    """
    _check_image(image, "jax.vmap(random_crop, (0, 0, None))(keys, images, size)")
    _check_fits(image, size)
    height, width, maps = image.shape
    top, left = jax.random.randint(key, (2,), 0, jnp.array([height - size + 1, width - size + 1]))
    return jax.lax.dynamic_slice(image, (top, left, 0), (size, size, maps))


def random_resized_crop(key, image, size, min_area, max_aspect=4 / 3):
    """Cuts a rectangle of random size and place out of an image, and resizes it to a square.

    Args:
      key: a jax.random key.
      image: (H, W, C) floating-point array.
      size: side of the square in pixels.
      min_area: the rectangle's share of the image's area is drawn uniformly from [min_area, 1].
      max_aspect: the logarithm of its width / height, in shares of the image's, is drawn uniformly from
        [-log max_aspect, log max_aspect]. A side that would leave the image is shortened to it: of areas above
        1 / max_aspect, some become smaller than they were drawn.

    Returns:
      (size, size, C) array of the same dtype, by bilinear interpolation, with antialiasing where it shrinks.

    Raises:
      ValueError: if the image is not (H, W, C) or has integer pixels, or min_area is not in (0, 1].

    Source: not in the paper; Szegedy et al., "Going deeper with convolutions" (2015), section 6.
    """
    _check_image(image, "jax.vmap(random_resized_crop, (0, 0, None, None))(keys, images, size, min_area)")
    _check_floating(image)
    if not 0 < min_area <= 1:
        raise ValueError(f"min_area is {min_area}; accepted is a number above 0, at most 1.")
    of_area, of_aspect, of_place = jax.random.split(key, 3)
    area = jax.random.uniform(of_area, minval=min_area, maxval=1.0)
    limit = math.log(max_aspect)
    aspect = jnp.exp(jax.random.uniform(of_aspect, minval=-limit, maxval=limit))
    shares = jnp.minimum(1.0, jnp.sqrt(jnp.stack([area / aspect, area * aspect])))  # of height and width
    sides = shares * jnp.array(image.shape[:2])
    corner = jax.random.uniform(of_place, (2,)) * (jnp.array(image.shape[:2]) - sides)
    scale = size / sides
    return jax.image.scale_and_translate(
        image, (size, size, image.shape[2]), (0, 1), scale, -corner * scale, method="linear"
    )


def random_flip(key, image):
    """Mirrors an (H, W, C) image left to right with probability 1/2. Raises ValueError for another rank."""
    _check_image(image, "jax.vmap(random_flip)(keys, images)")
    return jnp.where(jax.random.bernoulli(key), image[:, ::-1], image)


def center_crop(image, size):
    """The central (size, size, C) square of an (H, W, C) image. Raises ValueError if it does not fit."""
    _check_image(image, "jax.vmap(center_crop, (0, None))(images, size)")
    _check_fits(image, size)
    top, left = (image.shape[0] - size) // 2, (image.shape[1] - size) // 2
    return image[top : top + size, left : left + size]


def ten_crop(image, size):
    """The four corners and the centre of an image, and their mirror images.

    Args:
      image: (H, W, C) array.
      size: side of a view, at most H and W.

    Returns:
      (10, size, size, C): top left, top right, bottom left, bottom right, centre, and
      the same five mirrored left to right.

    Raises:
      ValueError: if the views do not fit into the image, or the image is not (H, W, C).
    """
    _check_image(image, "jax.vmap(ten_crop, (0, None))(images, size)")
    _check_fits(image, size)
    bottom, right = image.shape[0] - size, image.shape[1] - size
    corners = [image[i : i + size, j : j + size] for i in (0, bottom) for j in (0, right)]
    views = jnp.stack([*corners, center_crop(image, size)])
    return jnp.concatenate([views, views[:, :, ::-1]])


def means(mean_image, size, at: MeanAt):
    """What to subtract from an image, and then from a crop of it; together they subtract the mean once.

    Args:
      mean_image: (H, W, C) array.
      size: side of the crops.
      at: "crop" subtracts from each crop the mean at the same place (paper); "center" subtracts the
        mean's central crop from every crop, wherever the crop is in its image (2012 program).

    Returns:
      Two arrays to subtract, one of which is 0.
    """
    return (mean_image, 0.0) if at == "crop" else (0.0, center_crop(mean_image, size))


def _check_image(image, for_a_batch):
    if image.ndim != 3:
        raise ValueError(
            f"image has the shape {image.shape}; accepted is one image, (H, W, C). For a batch (N, H, W, C), with "
            f"N keys where keys are needed: {for_a_batch}."
        )


def _check_floating(image):
    if not jnp.issubdtype(image.dtype, jnp.floating):
        raise ValueError(f"image is {image.dtype}; accepted is a floating-point type. Use image.astype(jnp.float32).")


def _check_fits(image, size):
    if not 0 < size <= min(image.shape[:2]):
        raise ValueError(
            f"size is {size}, but the image is {image.shape[0]}x{image.shape[1]}; accepted is 1 to its shorter side."
        )


def pca_jitter(
    key, image, pca, std=0.1, *, scale: Literal["eigenvalue", "stdev"] = "eigenvalue", rescale: bool = False
):
    """Adds one random colour, a sum of the principal components, to all pixels of an image.

    [p1 p2 p3] [a1 l1, a2 l2, a3 l3]^T is added to each pixel; a ~ N(0, std^2) is drawn once for the image.

    Args:
      key: a jax.random key.
      image: (H, W, 3) floating-point array, pixels in 0..255 (the mean may already be subtracted).
      pca: ColorPCA of the training set.
      std: standard deviation of a.
      scale: l are the eigenvalues of pixels in [0, 1] ("eigenvalue", paper), or their square roots,
        the standard deviations ("stdev", 2012 program).
      rescale: whether to divide the sum by 1 + std (2012 program, after subtracting the mean), so
        that with "stdev" the scale of the pixels stays about the same.

    Returns:
      Array of the shape and dtype of image, not clipped.

    Raises:
      ValueError: for another scale or shape; or for integer pixels, to which no fraction can be added.
    """
    _check_image(image, "jax.vmap(pca_jitter, (0, 0, None))(keys, images, pca)")
    if image.shape[-1] != 3:
        raise ValueError(
            f"image has the shape {image.shape}; accepted are three channels, whose colours the PCA describes. Leave "
            "the jitter out for other images (--config.augment.pca_std=0)."
        )
    _check_floating(image)
    if scale not in ("eigenvalue", "stdev"):
        raise ValueError(f"scale is {scale!r}; accepted are 'eigenvalue' (paper) and 'stdev' (2012 program).")
    spread = pca.eigenvalues if scale == "eigenvalue" else jnp.sqrt(pca.eigenvalues)
    a = std * jax.random.normal(key, (3,))
    shifted = image + (255 * pca.eigenvectors @ (a * spread)).astype(image.dtype)[None, None]
    return shifted / (1 + std) if rescale else shifted


def fit_color_pca(images):
    """Principal components of the colours of a set of images.

    Args:
      images: (..., 3) array of pixels in 0..255, or an iterable of such arrays.

    Returns:
      ColorPCA of the covariance of all pixels, each pixel one sample, summed in float64.

    Raises:
      ValueError: if there are no pixels or not three channels.
    """
    count, total, square = 0, np.zeros(3), np.zeros((3, 3))
    for image in [images] if hasattr(images, "shape") else images:
        if np.shape(image)[-1] != 3:
            raise ValueError(f"an image has shape {np.shape(image)}; the colour PCA needs 3 channels on the last axis.")
        pixels = np.asarray(image, np.float64).reshape(-1, 3)
        count, total, square = count + len(pixels), total + pixels.sum(0), square + pixels.T @ pixels
    if not count:
        raise ValueError("no pixels were given; the colour PCA needs at least one image.")
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), color_pca_from_sums(count, total, square))


def color_pca_from_sums(count, total, square):
    """ColorPCA in float64.

    Args:
      count: number of pixels in 0..255.
      total: (3,), their sum.
      square: (3, 3), the sum of their outer products.
    """
    mean = total / count
    covariance = (square / count - np.outer(mean, mean)) / 255**2
    eigenvalues, eigenvectors = np.linalg.eigh(covariance)
    largest_first = np.argsort(-eigenvalues)
    eigenvectors = eigenvectors[:, largest_first]
    # The sign of an eigenvector is arbitrary: make its largest component positive on every machine.
    signs = np.sign(eigenvectors[np.abs(eigenvectors).argmax(0), range(3)])
    # Grey images have two eigenvalues of zero; rounding may make them slightly negative.
    return ColorPCA(eigenvectors * signs, np.maximum(eigenvalues[largest_first], 0))
