import io
import json
import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from corm_jax.errors import UserError
from corm_jax.masks.annotate.pairs import read_pairs, top_images
from corm_jax.masks.annotate.studio import Studio, open_studio, overlay


def test_overlay_is_grey_where_nothing_is_active_and_red_where_most_is() -> None:
    image = np.full((4, 4, 3), (0, 255, 0), np.uint8)
    blank = overlay(image, np.zeros((2, 2), np.float32))
    grey = round(0.587 * 255)  # luma of green in ITU-R 601
    np.testing.assert_array_equal(blank, np.full((4, 4, 3), grey))
    heat = np.array([[0, 0], [0, 1]], np.float32)
    mixed = overlay(image, heat).astype(int)
    # Bilinear with half-pixel centres, by hand: the corner pixel is the cell's own value.
    np.testing.assert_array_equal(mixed[:2, 0], np.full((2, 3), grey))
    assert mixed[3, 3, 0] > mixed[3, 3, 1] + 40 > mixed[3, 3, 2]
    # One quarter of the way in from the corner in both directions: 0.75 * 0.75 of it.
    flat = overlay(image, np.full((2, 2), 0.75 * 0.75, np.float32)).astype(int)
    assert np.abs(mixed[2, 2] - flat[2, 2]).max() <= 1


def decoded(files: list[bytes]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(io.BytesIO(data))) for data in files])


@pytest.fixture(scope="module")
def studio(built: Path) -> Studio:
    return open_studio(built, read_pairs(built))


def test_pictures_show_the_top_images_as_the_encoder_saw_them(studio: Studio) -> None:
    makers = studio.makers()
    number = len(studio.pairs) - 1
    feature = studio.pairs.features[number]
    images = decoded(makers["images"](number))
    assert images.shape == (5, 16, 16, 3)
    encoder, store = studio.encoder, studio.store
    pixels = jnp.asarray(images, jnp.float32) / 255
    _, activations, maps = encoder.encode(encoder.variables, pixels)
    top = top_images(store, feature)
    np.testing.assert_allclose(
        activations[:, feature.feature], store.activations(top)[:, feature.feature], rtol=2e-3
    )
    shown = decoded(makers["maps"](number))
    for image, activation_map, picture in zip(images, maps, shown, strict=True):
        heat = np.asarray(activation_map[..., feature.feature])
        expected = overlay(image, heat / heat.max())
        assert np.abs(picture.astype(int) - expected).max() <= 1


def test_attacks_raise_the_feature_and_are_made_once(studio: Studio) -> None:
    makers = studio.makers()
    feature = studio.pairs.features[0]
    images, attacked = decoded(makers["images"](0)), makers["attacks"](0)
    encoder = studio.encoder
    before, after = (
        np.asarray(encoder.encode(encoder.variables, jnp.asarray(batch, jnp.float32) / 255)[1])
        for batch in (images, decoded(attacked))
    )
    assert (after[:, feature.feature] > before[:, feature.feature] + 0.01).all()
    files = sorted(studio.cache.rglob("*.png"))
    assert [file.read_bytes() for file in files] == attacked
    files[2].write_bytes(b"kept")  # read, not made again
    assert makers["attacks"](0) == [*attacked[:2], b"kept", *attacked[3:]]
    files[2].unlink()  # as if stopped half-way
    assert makers["attacks"](0) == attacked


@pytest.fixture
def copied(built: Path, tmp_path: Path) -> Path:
    workdir = tmp_path / "copied"
    shutil.copytree(built, workdir)
    return workdir


def test_another_encoder_than_was_built_with_is_refused(copied: Path) -> None:
    path = copied / "config.json"
    config = json.loads(path.read_text())
    config["encoder"]["center_crop_share"] = 0.5
    path.write_text(json.dumps(config))
    message = f"the encoder {config['encoder']['path']} has changed since {copied} was built"
    with pytest.raises(UserError, match=re.escape(message)):
        open_studio(copied, read_pairs(copied))


def test_other_images_than_were_built_with_are_refused(copied: Path) -> None:
    path = copied / "store" / "train" / "file_names.npy"
    names = np.load(path)
    names[0] = b"other"
    np.save(path, names)
    with pytest.raises(UserError, match="the images have changed since"):
        open_studio(copied, read_pairs(copied))


def test_workdir_without_store_says_which_command_to_run(copied: Path) -> None:
    shutil.rmtree(copied / "store")
    with pytest.raises(UserError, match=r"holds no features; .*corm_jax.masks build"):
        open_studio(copied, read_pairs(copied))


def test_class_without_images_has_no_pictures(studio: Studio, copied: Path) -> None:
    for path in (copied / "store" / "train").glob("shard-*/label.npy"):
        labels = np.load(path)
        labels[labels == studio.pairs.features[0].class_index] = 1
        np.save(path, labels)
    empty = open_studio(copied, studio.pairs)
    assert [make(0) for make in empty.makers().values()] == [[], [], []]
