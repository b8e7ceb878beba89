"""One host of a training: loads its part of some batches and prints what it read and got.

python host_process.py DATA_DIR INDEX COUNT {"batch size": [first step, step after the last]}
"""

import hashlib
import json
import sys

import numpy as np

from corm_jax.config import base_config
from corm_jax.data.dataset import open_dataset, training_loader


def main(data_dir: str, index: str, count: str, steps: str) -> None:
    config = base_config("erm")
    config.data.tfds_name, config.data.data_dir = "spurious_shapes/tiny", data_dir
    config.data.image_size = 16
    images = open_dataset(config).train
    read_images, result = images.images.read, {}
    for batch_size, (start, stop) in json.loads(steps).items():
        config.train.batch_size = int(batch_size)
        read: list[int] = []

        def counting(indices: np.ndarray, read: list[int] = read) -> list[tuple[bytes, int]]:
            read.extend(map(int, indices))
            return read_images(indices)

        images.images.read = counting
        loader = training_loader(config, images, (int(index), int(count)))
        batches = [examples(batch) for batch in loader.batches(start, stop)]
        result[batch_size] = {"read": read, "batches": batches}
    print(json.dumps(result))


def examples(batch: dict[str, np.ndarray]) -> list[str]:
    """Returns a hash of all that a batch says of each of its examples."""
    fields = [batch[key] for key in sorted(batch)]
    return [
        hashlib.sha256(b"".join(field[place].tobytes() for field in fields)).hexdigest()
        for place in range(len(batch["id"]))
    ]


if __name__ == "__main__":
    main(*sys.argv[1:])
