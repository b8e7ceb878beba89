"""Memory of a training step on each device: data parallel or sharded, blocks kept or recomputed.

    python benchmarks/sharding.py --json sharding.json

Compiles the step of `corm_jax.steps` for simulated devices of a CPU, which takes minutes and runs
nothing, and prints what the compiler plans. `state` is parameters, running averages and optimizer
state, `batch` the loaded images and masks; both are exact for every kind of device. `working`, all
else at its peak (activations, gradients, gathered parameters), is the plan of XLA for CPUs, which
computes bfloat16 in float32 and orders operations its own way: an estimate for others, mostly
from above.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any

MESHES = ("data", "fsdp", "mixed")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="vit_large_patch16_224")
    parser.add_argument("--preset", default="corm", help="objective")
    parser.add_argument("--image_size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--dtype", default="bfloat16", help="of computation")
    parser.add_argument("--devices", type=int, nargs="+", default=[8, 256])
    parser.add_argument("--per_device_batch", type=int, default=16, help="images")
    parser.add_argument(
        "--meshes",
        nargs="+",
        default=["data", "fsdp"],
        choices=MESHES,
        help="data: data=N; fsdp: fsdp=N; mixed: fsdp=8, data=N/8",
    )
    parser.add_argument("--remat", nargs="+", type=int, default=[0, 1], choices=(0, 1))
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    return parser.parse_args()


def simulate(devices: int) -> None:
    """Makes the CPU of this process appear as several devices; call before jax is imported."""
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["XLA_FLAGS"] = (
        # Buffers are assigned before LLVM optimises: the plan is the same, the wait shorter.
        f"--xla_force_host_platform_device_count={devices} --xla_backend_optimization_level=0 "
        "--xla_llvm_disable_expensive_passes=true"
    )


def measure(arguments: argparse.Namespace, devices: int, mesh: str, remat: bool) -> dict[str, Any]:
    """Compiles one step; returns megabytes on each device, and what it took."""
    import jax
    from objectives import CLASSES, random_batch

    from corm_jax.config import base_config, check_config
    from corm_jax.models import create_model
    from corm_jax.sharding import batch_sharding, create_mesh
    from corm_jax.state import abstract_state
    from corm_jax.steps import make_train_step

    batch_size = arguments.per_device_batch * devices
    config = base_config(arguments.preset)
    config.model.update({"name": arguments.model, "dtype": arguments.dtype, "remat": remat})
    config.data.image_size, config.train.batch_size = arguments.image_size, batch_size
    check_config(config)
    fsdp = {"data": 1, "fsdp": devices, "mixed": min(8, devices)}[mesh]
    grid = create_mesh(-1, fsdp, jax.devices()[:devices])
    model = create_model(
        config.model.name,
        num_classes=CLASSES,
        dtype=config.model.dtype,
        head_bias=config.model.head_bias,
    )
    abstract = abstract_state(config, model, grid)
    one = random_batch(1, arguments.image_size)
    batch = {
        name: jax.ShapeDtypeStruct(
            (batch_size, *value.shape[1:]), value.dtype, sharding=batch_sharding(grid)
        )
        for name, value in one.items()
    }
    began = time.perf_counter()
    step, _ = make_train_step(config, model, grid, abstract)
    plan = step.lower(abstract, batch).compile().memory_analysis()
    loaded = sum(value.nbytes for value in one.values()) * arguments.per_device_batch
    return {
        "state": (plan.argument_size_in_bytes - loaded) / 1e6,
        "batch": loaded / 1e6,
        "working": plan.temp_size_in_bytes / 1e6,
        "seconds": time.perf_counter() - began,
    }


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    arguments = parse()
    simulate(max(arguments.devices))
    from corm_jax.errors import UserError
    from corm_jax.files import write_json

    print(
        f"{arguments.model}, {arguments.preset}, {arguments.dtype}, {arguments.image_size} pixels, "
        f"{arguments.per_device_batch} images a device; MB on each device\n"
    )
    print("| devices | mesh | remat | state | batch | working | total | s to compile |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    records = []
    try:
        for devices in arguments.devices:
            for mesh in arguments.meshes:
                for remat in map(bool, arguments.remat):
                    found = measure(arguments, devices, mesh, remat)
                    seconds = found.pop("seconds")
                    found["total"] = sum(found.values())
                    cells = " | ".join(f"{value:.0f}" for value in found.values())
                    kept = "yes" if remat else "no"
                    print(f"| {devices} | {mesh} | {kept} | {cells} | {seconds:.0f} |", flush=True)
                    where = f"{arguments.model}/{devices}/{mesh}/{'remat' if remat else 'kept'}"
                    records += [
                        {"name": f"memory_{name}/{where}", "value": value, "unit": "MB"}
                        for name, value in found.items()
                    ]
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if arguments.json:
        write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
