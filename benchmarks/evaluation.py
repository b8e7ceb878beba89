"""What an evaluation costs over the bare forward passes of the model that it consists of.

    python benchmarks/evaluation.py --json evaluation.json

`complement` takes 10 draws of noise in two regions and the clean images: 21 forward passes.
Interleaved rounds of one batch, medians over rounds:

- `bare_over_evaluation`: the time of 21 compiled forward passes of ready images, over that of the
  protocol's step, which draws the views as well.
- `reference_over_evaluation`: the time of the way that published scripts take: a Python loop over
  classes, conditions and draws, with noise by numpy and a compiled forward pass each.

Images and masks are random.
"""

import argparse
import functools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from objectives import CLASSES, median_ratio, random_batch
from tqdm import tqdm

from corm_jax.config import base_config
from corm_jax.files import write_json
from corm_jax.models import MODELS, create_model
from corm_jax.protocols import PROTOCOLS, make_eval_step
from corm_jax.protocols.views import core_region
from corm_jax.sharding import create_mesh, put_batch, replicated
from corm_jax.steps import expand_batch

IMAGES_OF_A_CLASS = 4  # in the reference's loop


def prepare(model_name: str, arguments: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Returns the three ways, each a function that does the work and waits for it."""
    mesh = create_mesh(-1, 1)
    config = base_config("erm")
    config.eval.trials = arguments.trials
    model = create_model(model_name, num_classes=CLASSES, dtype="float32")
    loaded = random_batch(arguments.batch_size, arguments.image_size)
    batch = put_batch(loaded, mesh)
    initialize = jax.jit(functools.partial(model.init, train=False), out_shardings=replicated(mesh))
    variables = initialize(jax.random.key(0), jnp.zeros((1, *loaded["image"].shape[1:])))
    step = make_eval_step(PROTOCOLS["complement"](model, config), mesh)

    @jax.jit
    def predict(variables: Any, images: jax.Array) -> jax.Array:
        return model.apply(variables, images, train=False)[0].argmax(axis=-1)

    images = jax.jit(expand_batch)(batch)["image"]

    def bare() -> None:
        passes = 2 * arguments.trials + 1
        jax.block_until_ready([predict(variables, images) for _ in range(passes)])

    def evaluation() -> None:
        jax.block_until_ready(step(variables, batch))

    regions = np.asarray(jax.jit(core_region)(expand_batch(loaded)["core_mask"])[0])
    pixels = loaded["image"].astype(np.float32) / 255

    def reference() -> None:
        rng = np.random.default_rng(0)
        for start in range(0, arguments.batch_size, IMAGES_OF_A_CLASS):
            of_class = slice(start, start + IMAGES_OF_A_CLASS)
            clean, core = pixels[of_class], regions[of_class]
            np.asarray(predict(variables, clean))
            for region in (1 - core, core):
                for _ in range(arguments.trials):
                    noise = rng.normal(0, config.eval.sigma, clean.shape).astype(np.float32)
                    np.asarray(predict(variables, np.clip(clean + noise * region, 0, 1)))

    return {"evaluation": evaluation, "bare": bare, "reference": reference}


def measure(ways: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Returns the seconds of each way by round, after one round that compiles."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in tqdm(range(rounds + 1), desc="rounds", disable=None):
        for name, work in ways.items():
            start = time.perf_counter()
            work()
            seconds[name].append(time.perf_counter() - start)
    return {name: values[1:] for name, values in seconds.items()}


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    add = parser.add_argument
    models = ["resnet50", "vit_tiny_patch16_224"]
    add("--models", nargs="+", default=models, choices=MODELS, metavar="MODEL")
    add("--rounds", type=int, default=5, help="of each way")
    add("--trials", type=int, default=10, help="draws of noise")
    add("--image_size", type=int, default=224, help="height and width in pixels")
    add("--batch_size", type=int, default=16, help="over all devices, a multiple of 4")
    add("--json", type=Path, help="also write [{name, value, unit}] to this file")
    arguments = parser.parse_args()
    if arguments.batch_size % IMAGES_OF_A_CLASS:
        parser.error(f"--batch_size must be a multiple of {IMAGES_OF_A_CLASS}")

    records = []
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, batch of {arguments.batch_size} "
        f"at {arguments.image_size} pixels, {arguments.rounds} rounds"
    )
    for name in arguments.models:
        seconds = measure(prepare(name, arguments), arguments.rounds)
        evaluation = seconds["evaluation"]
        print(f"{name}: {statistics.median(evaluation):.2f} s an evaluation of a batch")
        for way in ("bare", "reference"):
            ratio = median_ratio(seconds[way], evaluation)
            print(f"{way}_over_evaluation/{name}: {ratio:.3f}")
            record = {"name": f"{way}_over_evaluation/{name}", "value": ratio, "unit": "ratio"}
            records.append(record)
    if arguments.json:
        write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
