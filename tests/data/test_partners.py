"""Partners of evaluation images: of another class, the same however the images are batched."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flax.linen as nn
import numpy as np
import pytest
from evaluating import evaluate, mesh_of
from hypothesis import given
from hypothesis import strategies as st
from ml_collections import ConfigDict

from corm_jax.config import base_config
from corm_jax.data.dataset import evaluation_loader, open_dataset
from corm_jax.data.order import partners
from corm_jax.data.pairs import pair
from corm_jax.protocols import PROTOCOLS, make_eval_step


@given(
    st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2**32 - 1)), max_size=30),
    st.integers(0, 2**31 - 1),
)
def test_partners_are_of_another_class_where_there_is_one(
    examples: list[tuple[int, int]], seed: int
) -> None:
    labels, ids = np.array(examples, np.int64).reshape(-1, 2).T
    found = partners(labels, ids, seed=seed)
    if len(set(labels)) == 1:
        np.testing.assert_array_equal(found, np.arange(len(labels)))
    else:
        assert (labels[found] != labels).all()


def test_partners_are_drawn_evenly_by_seed_and_example() -> None:
    labels, ids = np.tile([0, 1, 2, 1], 250), np.arange(1000)
    found = partners(labels, ids, seed=3)
    np.testing.assert_array_equal(partners(labels, ids, seed=3), found)
    assert (partners(labels, ids, seed=4) != found).mean() > 0.9
    # Every image of the two other classes is as likely: class 1 has half of all images.
    for label, shares in {0: (0, 2 / 3, 1 / 3), 1: (0.5, 0, 0.5), 2: (1 / 3, 2 / 3, 0)}.items():
        lent = np.bincount(labels[found[labels == label]], minlength=3) / (labels == label).sum()
        assert abs(lent - shares).max() < 4 * np.sqrt(0.25 / 250)
    # About exp(-1) of them lend nothing: no image is a favourite.
    assert np.bincount(found, minlength=1000).max() < 10


def folder_config(folder: Path) -> ConfigDict:
    config = base_config("erm")
    config.data.source, config.data.folder = "folder", str(folder)
    config.data.image_size, config.eval.batch_size = 16, 6
    return config


@pytest.fixture
def config(make_folder: Callable[..., Path]) -> ConfigDict:
    """Three classes of 10 images, two of which have no mask."""
    folder = make_folder(classes=3)
    for image in sorted((folder / "images").glob("class1/*"))[:2]:
        (folder / "masks" / "class1" / f"{image.stem}.png").unlink()
    return folder_config(folder)


def load(config: ConfigDict, shard: tuple[int, int] = (0, 1)) -> list[dict[str, Any]]:
    loader, count = evaluation_loader(config, open_dataset(config).train, shard)
    return list(pair(config, loader).batches(0, count))


def test_each_image_has_its_partner_at_any_batch_size(config: ConfigDict) -> None:
    found, sizes = [], (4, 7)
    for config.eval.batch_size in sizes:
        pairs: dict[int, int] = {}
        for batch in load(config):
            partner = batch["partner"]
            pairs |= dict(zip(batch["id"].tolist(), partner["id"].tolist(), strict=True))
            masked = batch["has_mask"] > 0
            assert (partner["has_mask"][masked] > 0).all()
            assert (partner["label"] != batch["label"])[masked].all()
            np.testing.assert_array_equal(partner["id"][~masked], batch["id"][~masked])
        found.append(pairs)
    assert found[0] == found[1]
    assert len(found[0]) == 24
    config.eval.seed = 1
    assert {
        i: p for b in load(config) for i, p in zip(b["id"], b["partner"]["id"], strict=True)
    } != (found[0])


@pytest.mark.parametrize("hosts", [2, 3])
def test_hosts_together_load_the_pairs_of_one(config: ConfigDict, hosts: int) -> None:
    parts = [load(config, (index, hosts)) for index in range(hosts)]
    for whole, *shares in zip(load(config), *parts, strict=True):
        for key in ("id", "image", "weight"):
            joined = np.concatenate([share[key] for share in shares])
            np.testing.assert_array_equal(joined, whole[key])
            joined = np.concatenate([share["partner"][key] for share in shares])
            np.testing.assert_array_equal(joined, whole["partner"][key])


class Brightest(nn.Module):
    """The class is the brightest of three pixels: one at the core's place, two beside it."""

    num_classes: int = 3

    @nn.compact
    def __call__(self, images: Any, *, train: bool) -> tuple[Any, dict[str, Any]]:
        return images.mean(axis=-1)[:, (1, 6, 14), (1, 6, 14)], {}


def test_counts_depend_on_neither_batch_size_nor_devices(config: ConfigDict) -> None:
    results = []
    for config.eval.batch_size, devices in ((4, 1), (7, 1), (8, 8)):
        mesh = mesh_of(devices)
        step = make_eval_step(PROTOCOLS["ablations"](Brightest(), config), mesh)
        results.append(evaluate(step, {}, load(config), mesh))
    assert results[0] == results[1] == results[2]
    masked = sum(int((b["has_mask"] * b["weight"]).sum()) for b in load(config))
    assert 20 < masked == results[0]["images_swapped"] < 24


def test_an_undecodable_image_lends_nothing_and_is_not_counted(config: ConfigDict) -> None:
    before = load(config)
    lent = [int(i) for b in before for i in b["partner"]["id"][b["weight"] > 0]]
    split = open_dataset(config).train
    images = {
        int(i): split.images.describe(n)
        for n, i in enumerate(np.concatenate([b["id"] for b in before])[:24])
    }
    bad = max(set(images), key=lent.count)
    Path(images[bad]).write_bytes(b"no image")
    config.data.bad_images = "skip"
    mesh = mesh_of(1)
    step = make_eval_step(PROTOCOLS["ablations"](Brightest(), config), mesh)
    after = evaluate(step, {}, load(config), mesh)
    masked = sum(int((b["has_mask"] * b["weight"]).sum()) for b in before)
    assert lent.count(bad) > 1
    assert after["images_swapped"] == masked - 1 - lent.count(bad)
