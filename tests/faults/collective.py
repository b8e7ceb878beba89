"""Two processes that add up a number in every step, watched as a training is.

python collective.py WORKDIR STALL_MINUTES
"""

import sys
import time
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from corm_jax import distributed
from corm_jax.sharding import create_mesh, put_batch, replicated
from corm_jax.watch import STEP, Watch


def main() -> None:
    distributed.start_from_environment()
    mesh = create_mesh(-1, 1)
    add = jax.jit(lambda batch: batch["x"].sum(), out_shardings=replicated(mesh))

    def batches() -> Iterator[dict[str, jax.Array]]:
        while True:
            yield put_batch({"x": np.ones((1, 3), np.float32)}, mesh)

    watch = Watch(Path(sys.argv[1]), float(sys.argv[2]))
    with watch.running():
        for number, batch in enumerate(watch.batches(batches(), STEP), 1):
            assert float(add(batch)) == 6
            watch.logged(number, {})
            time.sleep(0.01)


if __name__ == "__main__":
    with distributed.EndingTogether():
        main()
