"""The flags of a build at the smallest size."""

from pathlib import Path

OPTIONS = {
    "encoder.kind": "run",
    "encoder.image_size": 16,
    "data.tfds_name": "spurious_shapes/tiny",
    "scan.batch_size": 8,
    "scan.shard_batches": 1,
    "scan.candidates": 2,
    "features.per_class": 3,
    "masks.top_k": 5,
    "masks.feature_maps": True,
    "annotations.without": "core",
}


def flags(encoder: Path, data_dir: Path, workdir: Path, **changes: object) -> list[str]:
    values = {**OPTIONS, "encoder.path": encoder, "data.data_dir": data_dir}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    overrides = [f"--config.{key}={value}" for key, value in values.items()]
    return ["build", f"--workdir={workdir}", *overrides]
