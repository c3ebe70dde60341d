"""Crops, flips, views and colours, by pixels that name their own place."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import (
    ColorPCA,
    center_crop,
    fit_color_pca,
    pca_jitter,
    random_crop,
    random_flip,
    random_resized_crop,
    ten_crop,
)
from alexnet_jax.training import augment
from alexnet_jax.training.augment import means


def places(height, width):
    """An image whose pixels hold their own row and column."""
    return jnp.stack(jnp.meshgrid(jnp.arange(height), jnp.arange(width), indexing="ij"), -1)


def keys(count):
    return jax.random.split(jax.random.key(0), count)


def test_crops_of_224_from_256_start_at_0_to_32_inclusive_and_nowhere_else():
    crops = jax.jit(jax.vmap(lambda key: random_crop(key, places(256, 256), 224)[:: 224 - 1, :: 224 - 1]))(keys(4000))
    top_left, bottom_right = np.asarray(crops[:, 0, 0]), np.asarray(crops[:, 1, 1])
    np.testing.assert_array_equal(bottom_right - top_left, 223)
    counts = np.stack([np.bincount(top_left[:, axis], minlength=33) for axis in (0, 1)])
    assert counts.shape == (2, 33)
    assert counts.min() > 60  # of 4000/33 = 121 expected, standard deviation 11
    assert counts.max() < 190
    assert np.corrcoef(top_left.T)[0, 1] == pytest.approx(0, abs=0.06)  # row and column are independent


def test_resized_crops_have_random_areas_aspects_and_places_inside_the_image():
    # Pixels hold their own coordinates. In an enlarged crop these lie on a line: bilinear interpolation keeps linear
    # functions. From two pixels, an eighth of the crop apart, follow the rectangle's corner and sides.
    image = places(64, 96).astype(jnp.float32)

    def two(key):
        cut = random_resized_crop(key, image, 128, 0.35)
        return cut[56, 56], cut[72, 72]

    first, second = np.asarray(jax.jit(jax.vmap(two))(keys(2000)), np.float64)
    sides = 8 * (second - first)
    corners = first + 0.5 - 56.5 / 128 * sides
    assert corners.min() > -0.01
    assert (corners + sides - [64, 96]).max() < 0.01
    shares = sides / [64, 96]
    area, aspect = shares.prod(1), np.log(shares[:, 1] / shares[:, 0])
    assert np.quantile(area, [0, 0.25, 0.5]) == pytest.approx([0.35, 0.51, 0.67], abs=0.02)  # uniform in [0.35, 1]
    whole = shares.max(1) < 0.999  # no side was shortened
    assert np.abs(aspect).max() == pytest.approx(np.log(4 / 3), abs=0.01)
    assert aspect[whole & (area < 0.7)].mean() == pytest.approx(0, abs=0.02)
    free = (shares < 0.9).all(1)
    at = corners[free] / ([64, 96] - sides[free])  # from 0, at the top or left, to 1
    assert np.quantile(at, [0.25, 0.5, 0.75], axis=0) == pytest.approx(np.array([[0.25, 0.5, 0.75]] * 2).T, abs=0.04)


def test_a_resized_crop_of_the_whole_image_is_the_resized_image():
    image = jnp.asarray(np.random.default_rng(1).uniform(0, 255, (8, 8, 3)), jnp.float32)
    got = random_resized_crop(jax.random.key(0), image, 8, 1.0, max_aspect=1.0)
    np.testing.assert_allclose(got, image, rtol=1e-5)
    half = random_resized_crop(jax.random.key(0), image, 4, 1.0, max_aspect=1.0)
    # Antialiasing over two pixels: weights 1, 3, 3, 1 of 8 a side; at the edge 3, 3, 1 of 7.
    inner = np.convolve([1, 3, 3, 1], [1]) / 8
    np.testing.assert_allclose(half[1, 1], np.einsum("i,j,ijc->c", inner, inner, image[1:5, 1:5]), rtol=1e-5)


def test_the_crop_of_a_run_is_the_paper_s_unless_the_area_varies():
    image, key = places(9, 12).astype(jnp.float32), jax.random.key(5)
    np.testing.assert_array_equal(augment.crop(key, image, 4), random_crop(key, image, 4))
    np.testing.assert_array_equal(augment.crop(key, image, 4, 0.5), random_resized_crop(key, image, 4, 0.5))
    np.testing.assert_array_equal(augment.crop(None, image, 4, 0.5), center_crop(image, 4))
    with pytest.raises(ValueError, match="min_area is 0; accepted is a number above 0, at most 1"):
        random_resized_crop(key, image, 4, 0)


def test_a_crop_is_a_piece_of_the_image():
    crop = random_crop(jax.random.key(5), places(9, 12), 4)
    rows, columns = np.asarray(crop[..., 0]), np.asarray(crop[..., 1])
    np.testing.assert_array_equal(rows, rows[0, 0] + np.arange(4)[:, None] + np.zeros((1, 4), int))
    np.testing.assert_array_equal(columns, columns[0, 0] + np.arange(4) + np.zeros((4, 1), int))
    assert crop.dtype == places(9, 12).dtype


def test_a_flip_mirrors_half_of_the_images():
    image = places(3, 4)
    flipped = np.asarray(jax.vmap(random_flip, in_axes=(0, None))(keys(2000), image))
    mirrored = (flipped == np.asarray(image[:, ::-1])).all((1, 2, 3))
    same = (flipped == np.asarray(image)).all((1, 2, 3))
    assert np.all(mirrored ^ same)
    assert mirrored.mean() == pytest.approx(0.5, abs=0.05)


def test_the_ten_views_stand_in_their_order():
    views = np.asarray(ten_crop(places(8, 9), 5))
    corners = [tuple(view[0, 0]) for view in views]
    # top left, top right, bottom left, bottom right, centre; mirrored, a view starts at its right end
    assert corners[:5] == [(0, 0), (0, 4), (3, 0), (3, 4), (1, 2)]
    assert corners[5:] == [(0, 4), (0, 8), (3, 4), (3, 8), (1, 6)]
    np.testing.assert_array_equal(views[5:], views[:5, :, ::-1])
    np.testing.assert_array_equal(views[4], center_crop(places(8, 9), 5))


def test_the_central_crop_of_256_leaves_16_on_each_side():
    crop = center_crop(places(256, 256), 224)
    assert (tuple(crop[0, 0]), tuple(crop[-1, -1])) == ((16, 16), (239, 239))


PCA = fit_color_pca(np.random.default_rng(0).integers(0, 256, (5, 9, 9, 3)) * np.array([1.0, 0.5, 0.2]))


@pytest.mark.parametrize(("scale", "power"), [("eigenvalue", 1.0), ("stdev", 0.5)])
def test_jitter_shifts_all_pixels_along_the_principal_colours(scale, power):
    image = jnp.asarray(np.random.default_rng(1).uniform(0, 255, (4, 5, 3)), jnp.float32)
    many = keys(20_000)
    shifts = jax.jit(jax.vmap(functools.partial(pca_jitter, scale=scale), in_axes=(0, None, None)))(many, image, PCA)
    shifts = np.asarray(shifts - image, np.float64)
    np.testing.assert_allclose(shifts, np.broadcast_to(shifts[:, :1, :1], shifts.shape), atol=1e-4)
    vectors, values = np.float64(PCA.eigenvectors), np.float64(PCA.eigenvalues)
    want = 255**2 * 0.1**2 * vectors @ np.diag(values ** (2 * power)) @ vectors.T
    got = np.cov(shifts[:, 0, 0].T)
    np.testing.assert_allclose(got, want, atol=0.04 * np.abs(want).max())


def test_jitter_is_pure_and_off_at_zero():
    image = jnp.ones((2, 2, 3))
    np.testing.assert_array_equal(pca_jitter(jax.random.key(1), image, PCA), pca_jitter(jax.random.key(1), image, PCA))
    np.testing.assert_array_equal(pca_jitter(jax.random.key(1), image, PCA, 0.0), image)
    assert pca_jitter(jax.random.key(1), image.astype(jnp.bfloat16), PCA).dtype == jnp.bfloat16


def test_the_colour_pca_is_the_eigendecomposition_of_the_covariance():
    images = np.random.default_rng(2).integers(0, 256, (6, 7, 8, 3)) * np.array([1.0, 0.7, 0.1])
    pca = fit_color_pca(images)
    covariance = np.cov(images.reshape(-1, 3).T / 255, bias=True)
    vectors, values = np.float64(pca.eigenvectors), np.float64(pca.eigenvalues)
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, atol=1e-7)
    np.testing.assert_allclose(vectors.T @ vectors, np.eye(3), atol=1e-6)
    assert values[0] > values[1] > values[2] > 0
    one_by_one = fit_color_pca(image for image in images)
    np.testing.assert_allclose(one_by_one.eigenvectors, pca.eigenvectors, atol=1e-6)


def test_grey_images_vary_along_grey_alone():
    grey = np.repeat(np.random.default_rng(3).integers(0, 256, (4, 6, 6, 1)), 3, -1)
    pca = fit_color_pca(grey)
    np.testing.assert_allclose(pca.eigenvectors[:, 0], 3**-0.5, rtol=1e-5)
    np.testing.assert_allclose(pca.eigenvalues, [3 * np.var(grey / 255), 0, 0], rtol=1e-5, atol=1e-7)
    assert np.all(pca.eigenvalues >= 0)


def test_what_cannot_be_fitted_or_scaled_is_named():
    with pytest.raises(ValueError, match=r"shape \(2, 2, 1\); .* 3 channels"):
        fit_color_pca(np.zeros((2, 2, 1)))
    with pytest.raises(ValueError, match="no pixels"):
        fit_color_pca([])
    with pytest.raises(ValueError, match="'variance'; accepted are 'eigenvalue'"):
        pca_jitter(jax.random.key(0), jnp.ones((1, 1, 3)), ColorPCA(jnp.eye(3), jnp.ones(3)), scale="variance")


@pytest.mark.parametrize("scale", ["eigenvalue", "stdev"])
def test_a_jitter_is_the_papers_product_with_the_drawn_a(scale):
    key, image = jax.random.key(4), jnp.full((2, 3, 3), 100.0)
    a = 0.2 * np.float64(jax.random.normal(key, (3,)))
    spread = np.float64(PCA.eigenvalues) ** (1.0 if scale == "eigenvalue" else 0.5)
    shift = [255 * sum(float(PCA.eigenvectors[c, i]) * a[i] * spread[i] for i in range(3)) for c in range(3)]
    got = pca_jitter(key, image, PCA, 0.2, scale=scale) - image
    np.testing.assert_allclose(got, np.broadcast_to(shift, (2, 3, 3)), rtol=1e-4, atol=1e-4)


def test_a_rescaled_jitter_is_divided_by_1_more_than_its_std():
    key, image = jax.random.key(4), jnp.full((2, 3, 3), 100.0)
    plain, rescaled = (pca_jitter(key, image, PCA, 0.1, rescale=rescale) for rescale in (False, True))
    np.testing.assert_allclose(rescaled, plain / 1.1, rtol=1e-6)


@pytest.mark.parametrize("at", ["crop", "center"])
def test_the_mean_is_subtracted_at_the_crop_s_place_or_always_its_centre(at):
    mean, image = places(6, 6) * 1.0, 100.0 + places(6, 6)
    of_image, of_crop = means(mean, 4, at)
    crop = (image - of_image)[:4, 2:6] - of_crop
    # At the crop's place 100 is left; of the centre, which begins at (1, 1), what the two places differ by.
    want = np.full((4, 4, 2), 100.0) if at == "crop" else np.broadcast_to([100.0 - 1, 100.0 + 1], (4, 4, 2))
    np.testing.assert_array_equal(crop, want)


def test_the_largest_component_of_a_principal_colour_is_positive():
    vectors = np.asarray(PCA.eigenvectors)
    assert np.all(vectors[np.abs(vectors).argmax(0), range(3)] > 0)


def test_views_and_draws_are_the_same_under_jit_and_vmap():
    images = jnp.asarray(np.random.default_rng(6).uniform(0, 255, (3, 6, 7, 3)), jnp.float32)
    for f in (
        lambda key, image: random_crop(key, image, 4),
        lambda key, image: random_resized_crop(key, image, 4, 0.3),
        random_flip,
        lambda key, image: ten_crop(image, 4),
        lambda key, image: center_crop(image, 4),
        lambda key, image: pca_jitter(key, image, PCA),
    ):
        alone = [f(key, image) for key, image in zip(keys(3), images, strict=True)]
        np.testing.assert_allclose(jax.jit(jax.vmap(f))(keys(3), images), np.stack(alone), rtol=1e-5)


def test_a_view_that_does_not_fit_and_pixels_that_cannot_shift_are_refused():
    image = jnp.zeros((5, 8, 3))
    for cut in (center_crop, ten_crop, functools.partial(random_crop, jax.random.key(0))):
        with pytest.raises(ValueError, match="size is 6, but the image is 5x8"):
            cut(image, 6)
    pixels = image.astype(jnp.uint8)
    for change in (
        lambda: pca_jitter(jax.random.key(0), pixels, PCA),
        lambda: random_resized_crop(jax.random.key(0), pixels, 4, 0.5),
    ):
        with pytest.raises(ValueError, match="image is uint8; accepted is a floating-point type"):
            change()


@pytest.mark.parametrize(
    ("call", "for_a_batch"),
    [
        (lambda x: random_flip(jax.random.key(0), x), "jax.vmap(random_flip)(keys, images)"),
        (lambda x: random_crop(jax.random.key(0), x, 2), "jax.vmap(random_crop, (0, 0, None))(keys, images, size)"),
        (
            lambda x: random_resized_crop(jax.random.key(0), x, 2, 0.5),
            "jax.vmap(random_resized_crop, (0, 0, None, None))(keys, images, size, min_area)",
        ),
        (lambda x: center_crop(x, 2), "jax.vmap(center_crop, (0, None))(images, size)"),
        (lambda x: ten_crop(x, 2), "jax.vmap(ten_crop, (0, None))(images, size)"),
        (lambda x: pca_jitter(jax.random.key(0), x, PCA), "jax.vmap(pca_jitter, (0, 0, None))(keys, images, pca)"),
    ],
)
@pytest.mark.parametrize("shape", [(4, 6, 6, 3), (6, 6)])
def test_a_batch_where_one_image_is_meant_is_refused_with_what_works(call, for_a_batch, shape):
    with pytest.raises(ValueError, match=re.escape(f"image has the shape {shape}; accepted is one image")) as error:
        call(jnp.ones(shape))
    assert for_a_batch in str(error.value)
    names = {"keys": jax.random.split(jax.random.key(0), 4), "images": jnp.ones((4, 6, 6, 3)), "pca": PCA, "size": 2}
    names["min_area"] = 0.5
    assert len(eval(for_a_batch, {**globals(), **names})) == 4


def test_jitter_of_one_channel_is_refused():
    with pytest.raises(ValueError, match=r"accepted are three channels, whose colours the PCA describes"):
        pca_jitter(jax.random.key(0), jnp.ones((4, 4, 1)), PCA)
