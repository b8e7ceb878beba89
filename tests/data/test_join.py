"""The join of images and mask records, against one with dictionaries."""

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corm_jax.data.join import check, join
from corm_jax.errors import UserError

names = st.text("ab0/_.", max_size=4).map(str.encode)


@settings(max_examples=200, deadline=None)
@given(st.lists(names), st.lists(names, unique=True))
def test_every_image_finds_its_record(images: list[bytes], records: list[bytes]) -> None:
    joined = join(np.array(images, np.bytes_), np.array(records, np.bytes_))
    row_of = {name: row for row, name in enumerate(records)}
    assert joined.rows.tolist() == [row_of.get(name, -1) for name in images]
    assert joined.images_without_record == sum(name not in row_of for name in images)
    assert joined.records_without_image == len(set(records) - set(images))


@pytest.mark.parametrize(("unmatched", "passes"), [(1, True), (2, False)])
def test_one_percent_of_unmatched_records_passes_and_more_names_an_example(
    unmatched: int, passes: bool, caplog: pytest.LogCaptureFixture
) -> None:
    records = np.array([f"image{i:03d}" for i in range(100)], np.bytes_)
    images = np.concatenate([records[unmatched:], np.array([b"x", b"y", b"z"])])
    joined = join(images, records)
    with caplog.at_level(logging.INFO):
        if passes:
            check(joined, records, 0.01, "masks/mine")
        else:
            with pytest.raises(UserError) as caught:
                check(joined, records, 0.01, "masks/mine")
            message = str(caught.value)
            assert "masks/mine: 2 of 100 mask records (2.0%) find no image" in message
            assert "'image000'" in message
            assert "config.data.max_unmatched_records" in message
    counts = f"{100 - unmatched} images have a record, 3 images have none, {unmatched} records find"
    assert counts in caplog.text


def test_records_of_another_data_set_are_refused() -> None:
    records = np.array([b"n01_1.JPEG", b"n01_2.JPEG"])
    with pytest.raises(UserError, match=r"2 of 2 mask records \(100.0%\)"):
        check(join(np.array([b"cat", b"dog"]), records), records, 0.5, "masks")
