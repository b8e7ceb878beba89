"""What objectives cost: time and memory of a training step, over those of plain cross entropy.

    python benchmarks/objectives.py --json objectives.json

Compiles the step of `corm_jax.steps` for each model and preset, and times them in interleaved
rounds: a round takes one step of each, `step_over_erm` is the median over rounds of a preset's time
over erm's in the same round. By wall time, and by the processor time of the process, which other
processes on the machine disturb less; the latter means nothing on accelerators. Memory is what the
compiler plans beside arguments and results. Images and masks are random.
"""

import argparse
import dataclasses
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax.config import base_config, check_config
from corm_jax.errors import UserError
from corm_jax.files import write_json
from corm_jax.losses.presets import PRESETS
from corm_jax.models import MODELS, create_model
from corm_jax.sharding import create_mesh, put_batch
from corm_jax.state import abstract_state, create_state
from corm_jax.steps import make_train_step

CLASSES = 1000


@dataclasses.dataclass
class Timing:
    """One compiled step, its state, and its times in seconds, by round."""

    step: Any
    state: Any
    batch: Any
    megabytes: float
    wall: list[float] = dataclasses.field(default_factory=list)
    processor: list[float] = dataclasses.field(default_factory=list)

    def take(self) -> None:
        """Takes a step and notes its time."""
        wall, processor = time.perf_counter(), time.process_time()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready((self.state, metrics))
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)


def random_batch(batch_size: int, image_size: int) -> dict[str, np.ndarray]:
    """Returns a loaded batch of noise whose masks cover the middle."""
    rng = np.random.default_rng(0)
    mask = np.zeros((batch_size, image_size, image_size), np.uint8)
    middle = slice(image_size // 4, 3 * image_size // 4)
    mask[:, middle, middle] = 255
    return {
        "image": rng.integers(0, 256, (batch_size, image_size, image_size, 3), np.uint8),
        "label": rng.integers(0, CLASSES, batch_size, np.int32),
        "id": np.arange(batch_size, dtype=np.uint32),
        "weight": np.ones(batch_size, np.float32),
        "has_mask": np.ones(batch_size, np.float32),
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (batch_size, 1)),
        "core_mask": mask,
    }


def make_config(model_name: str, preset: str, arguments: argparse.Namespace) -> ConfigDict:
    """Returns the config of a preset's steps.

    Raises:
      UserError: if the model cannot be trained so.
    """
    config = base_config(preset)
    config.model.update({"name": model_name, "dtype": arguments.dtype})
    config.data.image_size = arguments.image_size
    config.train.batch_size = arguments.batch_size
    # One optimizer for all models, and steps that move the weights little.
    config.optimizer.update({"name": "sgd", "learning_rate": 1e-6, "warmup_steps": 0})
    check_config(config)
    return config


def prepare(config: ConfigDict) -> Timing:
    """Compiles a step and warms it up."""
    mesh = create_mesh(-1, 1)
    model = create_model(
        config.model.name,
        num_classes=CLASSES,
        dtype=config.model.dtype,
        head_bias=config.model.head_bias,
    )
    abstract = abstract_state(config, model, mesh)
    state = create_state(config, model, abstract)
    batch = put_batch(random_batch(config.train.batch_size, config.data.image_size), mesh)
    step, _ = make_train_step(config, model, mesh, abstract)
    compiled = step.lower(state, batch).compile()
    megabytes = compiled.memory_analysis().temp_size_in_bytes / 1e6
    timing = Timing(compiled, state, batch, megabytes)
    timing.take()
    timing.wall.clear()
    timing.processor.clear()
    return timing


def measure(model_name: str, arguments: argparse.Namespace) -> dict[str, Timing]:
    """Returns the timings of every preset that one model can be trained with.

    Raises:
      UserError: if it cannot be trained at all.
    """
    configs = {"erm": make_config(model_name, "erm", arguments)}
    for preset in arguments.presets:
        try:
            configs[preset] = make_config(model_name, preset, arguments)
        except UserError as error:
            print(f"{model_name}: {preset} is left out: {error}", file=sys.stderr)
    compiling = tqdm(configs.items(), desc=f"compiling {model_name}", disable=None)
    timings = {preset: prepare(config) for preset, config in compiling}
    for _ in tqdm(range(arguments.rounds), desc=f"timing {model_name}", disable=None):
        for timing in timings.values():
            timing.take()
    return timings


def median_ratio(values: list[float], baseline: list[float]) -> float:
    """Returns the median over rounds of value / baseline."""
    return statistics.median(v / b for v, b in zip(values, baseline, strict=True))


def report(model_name: str, timings: dict[str, Timing]) -> list[dict[str, Any]]:
    """Prints a model's table; returns its records."""
    records, erm = [], timings["erm"]
    print(f"\n{model_name}\n")
    print("| preset | seconds | over erm | over erm, processor time | MB |\n|---|---|---|---|---|")
    for preset, timing in timings.items():
        wall = median_ratio(timing.wall, erm.wall)
        processor = median_ratio(timing.processor, erm.processor)
        print(
            f"| {preset} | {statistics.median(timing.wall):.3f} | {wall:.2f} | {processor:.2f} | "
            f"{timing.megabytes:.0f} |"
        )
        where = f"{model_name}/{preset}"
        records += [
            {"name": f"step_over_erm/{where}", "value": wall, "unit": "ratio"},
            {"name": f"processor_over_erm/{where}", "value": processor, "unit": "ratio"},
            {"name": f"step_memory/{where}", "value": timing.megabytes, "unit": "MB"},
        ]
    return records


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--models",
        nargs="+",
        default=["resnet50", "vit_tiny_patch16_224"],
        choices=MODELS,
        metavar="MODEL",
    )
    parser.add_argument(
        "--presets", nargs="+", default=list(PRESETS), choices=PRESETS, metavar="PRESET"
    )
    parser.add_argument("--rounds", type=int, default=5, help="timed steps of each")
    parser.add_argument("--image_size", type=int, default=128, help="height and width in pixels")
    parser.add_argument("--batch_size", type=int, default=4, help="over all devices")
    parser.add_argument("--dtype", default="float32", help="of computation: float32 or bfloat16")
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    arguments = parser.parse_args()

    records = []
    print(
        f"{jax.device_count()} x {jax.devices()[0].device_kind}, {arguments.dtype}, batch of "
        f"{arguments.batch_size} at {arguments.image_size} pixels, {arguments.rounds} rounds"
    )
    try:
        for name in arguments.models:
            records += report(name, measure(name, arguments))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
