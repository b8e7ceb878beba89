"""The PNG files of masks: what PIL reads back, and what TensorFlow does."""

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from corm_jax.data.tf_import import tf
from corm_jax.masks.png import encode, mask_size


@given(arrays.arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_masks_come_back_as_they_were(mask: np.ndarray) -> None:
    data = encode(mask)
    assert mask_size(data, "mask") == mask.shape
    with Image.open(io.BytesIO(data)) as image:
        image.verify()  # checksums
    with Image.open(io.BytesIO(data)) as image:
        assert image.mode == "L"
        np.testing.assert_array_equal(np.asarray(image), mask)
    np.testing.assert_array_equal(tf.io.decode_png(data, channels=1)[:, :, 0], mask)


@pytest.mark.parametrize("value", [0, 255])
def test_uniform_masks_take_few_bytes(value: int) -> None:
    assert len(encode(np.full((224, 224), value, np.uint8))) < 400
