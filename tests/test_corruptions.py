"""Corruptions: what they do in their region, and that nothing else shows there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from corm_jax.corruptions import (
    CORRUPTIONS,
    gaussian_noise,
    random_partners,
    random_permutation,
)
from corm_jax.errors import UserError


def test_noise_has_the_deviation_that_the_region_scales():
    images = jnp.full((4, 64, 64, 3), 0.5)
    region = jnp.concatenate([jnp.full((4, 64, 32, 1), 1.0), jnp.full((4, 64, 32, 1), 0.5)], axis=2)
    change = np.asarray(gaussian_noise(images, region, jax.random.key(0), sigma=0.1)) - 0.5
    for half, deviation in ((change[:, :, :32], 0.1), (change[:, :, 32:], 0.05)):
        # 24,576 draws: standard errors of 0.6 % and 0.5 % of the deviation.
        assert abs(half.mean()) < 4 * deviation / np.sqrt(half.size)
        assert abs(half.std() / deviation - 1) < 4 / np.sqrt(2 * half.size)
    independent = np.corrcoef(change.reshape(-1, 3).T) - np.eye(3)
    assert abs(independent).max() < 0.03  # each colour has a draw of its own


def test_pixels_outside_the_region_stay_exactly():
    images = jax.random.uniform(jax.random.key(1), (2, 8, 8, 3))
    region = jnp.zeros((2, 8, 8, 1)).at[:, :4].set(1.0)
    noisy = gaussian_noise(images, region, jax.random.key(0), sigma=0.25)
    np.testing.assert_array_equal(noisy[:, 4:], images[:, 4:])
    assert (np.asarray(noisy[:, :4]) != np.asarray(images[:, :4])).all(axis=(2, 3)).any()


def test_result_is_clipped_to_the_range_of_images():
    images = jnp.concatenate([jnp.zeros((1, 32, 32, 3)), jnp.ones((1, 32, 32, 3))])
    noisy = np.asarray(
        gaussian_noise(images, jnp.ones((2, 32, 32, 1)), jax.random.key(0), sigma=2.0)
    )
    assert noisy.min() == 0.0
    assert noisy.max() == 1.0
    # Half of the draws point out of the range and are clipped to its end.
    assert abs((noisy[0] == 0).mean() - 0.5) < 0.04
    assert abs((noisy[1] == 1).mean() - 0.5) < 0.04


def corrupt(name, images, region, seed=0, sigma=0.1, patch=2):
    sigmas = jnp.full((len(images), 1, 1, 1), sigma)
    return np.asarray(CORRUPTIONS[name](images, region, jax.random.key(seed), sigmas, patch))


def half_masked(size=8, batch=3):
    """Returns random images, and a region of 1 in the upper half but for image 2, soft in a row."""
    images = jax.random.uniform(jax.random.key(1), (batch, size, size, 3))
    region = jnp.zeros((batch, size, size, 1)).at[:2, : size // 2].set(1.0)
    return images, region.at[:2, size // 2].set(0.25)


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_pixels_outside_the_region_stay_and_those_inside_do_not(name):
    images, region = half_masked()
    changed = corrupt(name, images, region) != np.asarray(images)
    assert not changed[2].any()
    assert not changed[:2, 5:].any()
    assert changed[:2, :4].mean() > 0.5
    assert corrupt(name, images, region).min() >= 0
    assert corrupt(name, images, region).max() <= 1


@pytest.mark.parametrize("name", sorted(CORRUPTIONS))
def test_what_lies_outside_does_not_reach_into_the_region(name):
    images, _ = half_masked()
    region = jnp.zeros((3, 8, 8, 1)).at[:, :4].set(1.0)
    others = images.at[:, 4:].set(0.9)
    np.testing.assert_allclose(
        corrupt(name, images, region)[:, :4], corrupt(name, others, region)[:, :4], atol=1e-6
    )


@pytest.mark.parametrize("name", sorted(set(CORRUPTIONS) - {"gaussian_noise"}))
def test_a_soft_region_blends_linearly(name):
    images = jax.random.uniform(jax.random.key(1), (3, 8, 8, 3))
    # Shares above half, so that the same patches move; constant, so that means and weights agree.
    whole, soft = (corrupt(name, images, jnp.full((3, 8, 8, 1), share)) for share in (1.0, 0.75))
    if name in ("patch_shuffle", "swap"):  # what is moved is softened by the mean before
        mean = np.asarray(images).mean(axis=(1, 2), keepdims=True)
        if name == "swap":
            order = [
                int(abs(whole[i] - np.asarray(images)).sum((1, 2, 3)).argmin()) for i in range(3)
            ]
            mean = mean[order]
        whole = 0.75 * whole + 0.25 * mean
    expected = 0.25 * np.asarray(images) + 0.75 * whole
    np.testing.assert_allclose(soft, expected, atol=1e-5)


def test_grey_and_mean_colour_of_two_by_two_pixels():
    image = jnp.asarray([[0.0, 0.2], [0.6, 1.0]])[None, :, :, None] * jnp.ones(3)
    region = jnp.asarray([[1.0, 0.5], [0.0, 0.5]])[None, :, :, None]
    grey = corrupt("grey", image, region)[0, :, :, 1]
    np.testing.assert_allclose(grey, [[0.5, 0.35], [0.6, 0.75]], rtol=1e-6)
    # Mean over the region: (0 + 0.2 / 2 + 1 / 2) / 2 = 0.3.
    mean = corrupt("mean_colour", image, region)[0, :, :, 1]
    np.testing.assert_allclose(mean, [[0.3, 0.25], [0.6, 0.65]], rtol=1e-6)


def test_blur_of_a_whole_image_is_scipys_where_edges_are_far():
    images = np.random.default_rng(0).uniform(size=(2, 41, 41, 3)).astype(np.float32)
    found = corrupt("blur", jnp.asarray(images), jnp.ones((2, 41, 41, 1)), sigma=1.5 / 41)
    for channel in range(3):
        expected = scipy.ndimage.gaussian_filter(images[1, :, :, channel], 1.5, truncate=10)
        np.testing.assert_allclose(
            found[1, 15:26, 15:26, channel], expected[15:26, 15:26], rtol=1e-4
        )
    sharp = corrupt("blur", jnp.asarray(images), jnp.ones((2, 41, 41, 1)), sigma=0.0)
    np.testing.assert_allclose(sharp, images, atol=1e-6)


def test_blur_keeps_a_regions_only_colour():
    image = jnp.full((1, 8, 8, 3), 0.3).at[:, 2:5, 3:6].set(1.0)
    region = jnp.ones((1, 8, 8, 1)).at[:, 2:5, 3:6].set(0.0)
    np.testing.assert_allclose(corrupt("blur", image, region, sigma=0.5), image, atol=1e-6)


def test_patches_of_the_region_are_permuted():
    # Patches of one colour each: 0, 1/16, 2/16, ...
    colours = np.arange(16).reshape(4, 4) / 16
    images = jnp.asarray(np.kron(colours, np.ones((2, 2))), jnp.float32)[None, :, :, None]
    images = jnp.broadcast_to(images, (200, 8, 8, 3))
    region = jnp.ones((200, 8, 8, 1)).at[:, :4, :4].set(0.0)  # the first four patches
    shuffled = corrupt("patch_shuffle", images, region)
    patches = shuffled[:, ::2, ::2, 0]
    np.testing.assert_array_equal(np.kron(patches, np.ones((1, 2, 2))), shuffled[..., 0])
    assert (np.sort(patches.reshape(200, -1), axis=1) == colours.ravel()).all()
    moved = (patches != colours).mean(axis=0)
    assert not moved[:2, :2].any()
    outside = np.ones((4, 4), bool)
    outside[:2, :2] = False
    # A patch stays with probability 1/12, in 200 images.
    assert abs(moved[outside] - 11 / 12).max() < 4 * np.sqrt(11 / 12**2 / 200)
    with pytest.raises(UserError, match="patch=3 does not divide the images' size 8 x 8"):
        corrupt("patch_shuffle", images, region, patch=3)


def test_swap_of_two_images_by_hand():
    images = jnp.stack([jnp.full((2, 2, 3), 0.2), jnp.full((2, 2, 3), 0.6)])
    images = images.at[0, 0, 1].set(1.0).at[1, 1, 0].set(0.0)  # their cores
    images = images.at[1, 0, 0].set(0.9)
    region = jnp.ones((2, 2, 2, 1)).at[0, 0, 1].set(0.0).at[1, 1, 0].set(0.0)
    found = corrupt("swap", images, region)[..., 0]
    # The core of image 1 lies where image 0 wants a background: its background's mean is put.
    np.testing.assert_allclose(found[0], [[0.9, 1.0], [0.7, 0.6]], rtol=1e-6)
    np.testing.assert_allclose(found[1], [[0.2, 0.2], [0.0, 0.2]], rtol=1e-6)


def test_swap_gives_every_image_another_ones_region():
    images = jnp.broadcast_to((jnp.arange(6) / 10)[:, None, None, None], (6, 4, 4, 3))
    region = jnp.ones((6, 4, 4, 1)).at[jnp.array([1, 4])].set(0.0)  # two without mask
    for seed in range(20):
        sources = np.round(corrupt("swap", images, region, seed)[:, 0, 0, 0] * 10).astype(int)
        assert sources[1] == 1
        assert sources[4] == 4
        assert sorted(sources) == list(range(6))
        assert all(sources[i] != i for i in (0, 2, 3, 5))


def test_swap_leaves_the_only_image_with_a_region():
    images, region = half_masked(batch=3)
    region = region.at[1].set(0.0)
    np.testing.assert_array_equal(corrupt("swap", images, region), images)


@pytest.mark.parametrize("number", [0, 1, 2, 5])
def test_partners_form_one_random_cycle(number):
    eligible = jnp.arange(7) % 7 < number
    keys = jax.random.split(jax.random.key(0), 400)
    found = np.asarray(jax.vmap(lambda key: random_partners(key, eligible))(keys))
    assert (found[:, number:] == np.arange(number, 7)).all()
    for partners in found[:50]:
        visited, place = [], 0
        for _ in range(number):
            visited.append(place := int(partners[place]))
        assert sorted(visited) == list(range(number))
    if number == 5:  # each of the four others is as likely
        shares = np.bincount(found[:, 0], minlength=5)[:5] / 400
        assert shares[0] == 0
        assert abs(shares[1:] - 0.25).max() < 4 * np.sqrt(3 / 16 / 400)


def test_permutations_are_equally_likely():
    moving = jnp.asarray([True, False, True, True])
    keys = jax.random.split(jax.random.key(0), 1200)
    found = np.asarray(jax.vmap(lambda key: random_permutation(key, moving))(keys))
    assert (found[:, 1] == 1).all()
    permutations, counts = np.unique(found, axis=0, return_counts=True)
    assert len(permutations) == 6
    assert abs(counts / 1200 - 1 / 6).max() < 4 * np.sqrt(5 / 36 / 1200)
