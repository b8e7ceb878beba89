from pathlib import Path

import numpy as np
import pytest

from corm_jax.errors import UserError
from corm_jax.masks.annotate.pairs import read_descriptions, read_pairs, top_images
from corm_jax.masks.building import store
from corm_jax.masks.building.selection import Feature, write_features

NAMES = ("n01", "n02")


def test_workdir_without_features_says_which_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"features.json is missing; .* corm_jax.masks build"):
        read_pairs(tmp_path)
    write_features(tmp_path / "features.json", [], NAMES)
    with pytest.raises(UserError, match=r"features.json selects no feature"):
        read_pairs(tmp_path)


def test_pairs_are_the_features_in_their_order(tmp_path: Path) -> None:
    features = [Feature(1, 9, 1, 0.5), Feature(1, 4, 2, 0.25), Feature(0, 9, 1, 2.0)]
    write_features(tmp_path / "features.json", features, NAMES)
    pairs = read_pairs(tmp_path)
    assert list(pairs.features) == features
    assert [pairs.class_name(number) for number in range(len(pairs))] == ["n02", "n02", "n01"]
    assert not pairs.descriptions


def test_descriptions_of_imagenets_files_are_read(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("n01\tsea otter, Enhydra lutris\nn02 café  au lait \n\nn77 other\nlonely\n")
    assert read_descriptions(path, ("n01", "n02", "n03", "lonely")) == {
        "n01": "sea otter, Enhydra lutris",
        "n02": "café  au lait",
    }
    with pytest.raises(UserError, match=r"words.txt names none of the classes"):
        read_descriptions(path, ("n03",))
    path.write_bytes(b"n01 caf\xe9")
    with pytest.raises(UserError, match=r"words.txt is no text in UTF-8"):
        read_descriptions(path, NAMES)
    with pytest.raises(UserError, match=r"cannot read .*absent.txt"):
        read_descriptions(tmp_path / "absent.txt", NAMES)


def test_top_images_are_the_valid_ones_of_the_label_by_activation(tmp_path: Path) -> None:
    # activation of feature 1:  label 0 has 3 1 9(invalid) 9 9 2 5; label 1 has the largest
    activation = np.array([3, 1, 99, 9, 9, 9, 2, 5], np.float16)
    label = np.array([0, 0, 1, 0, 0, 0, 0, 0], np.int32)
    valid = np.array([True, True, True, False, True, True, True, True])
    names = np.array([b"%d" % index for index in range(8)])
    header = store.describe(
        names, encoder="some", shard_images=3, channels=2, grid=(1, 1), candidates=1
    )
    store.create_store(tmp_path, header, names)
    for number in range(3):
        part = slice(3 * number, 3 * number + 3)
        count = len(label[part])
        arrays = {
            "label": label[part],
            "predicted": 1 - label[part],
            "valid": valid[part],
            "activations": np.stack([-activation[part], activation[part]], axis=1),
            "candidates": np.zeros((count, 1), np.uint16),
            "maps": np.zeros((count, 1, 1, 1), np.uint8),
        }
        store.write_arrays(store.shard_path(tmp_path, number), arrays)
    found = store.FeatureStore(tmp_path)
    assert top_images(found, Feature(0, 1, 1, 1.0)).tolist() == [4, 5, 7, 0, 6]
    assert top_images(found, Feature(0, 0, 1, 1.0)).tolist() == [1, 6, 0, 7, 4]
    assert top_images(found, Feature(1, 1, 1, 1.0)).tolist() == [2]
    assert top_images(found, Feature(5, 1, 1, 1.0)).tolist() == []
