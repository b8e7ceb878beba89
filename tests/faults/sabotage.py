"""What goes wrong inside a process: called there before it begins."""

import threading
from typing import Any

import numpy as np

NAN_AFTER = 2  # steps of the process


def make_a_batch_nan() -> None:
    """Makes a number in a batch NaN on its way to the device, as a fault of the hardware would."""
    from corm_jax import train

    put, calls = train.put_batch, []

    def put_faulty(batch: dict[str, Any], mesh: Any) -> Any:
        calls.append(batch)
        if len(calls) == NAN_AFTER + 1:
            weight = batch["weight"].copy()
            weight[0] = np.nan
            batch = {**batch, "weight": weight}
        return put(batch, mesh)

    train.put_batch = put_faulty


def make_reads_hang() -> None:
    """Makes the storage of the images answer no more after some batches."""
    from corm_jax.data.tfds_source import TfdsImages

    read, calls = TfdsImages.read, []

    def read_or_hang(self: TfdsImages, indices: Any) -> Any:
        calls.append(indices)
        if len(calls) > 8:
            threading.Event().wait()
        return read(self, indices)

    TfdsImages.read = read_or_hang
