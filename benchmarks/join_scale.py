"""What the join of images with mask records costs at ImageNet's size.

    python benchmarks/join_scale.py --json join_scale.json     # 20 seconds, 300 MB of disk

Generates --records mask records with core and spurious 7x7 grids, and the file names of as many
images in another order. A process of its own then does what a run does at its start: it opens the
records, loads the images' names and joins the two (`start_seconds`); and what it does at every
step: it looks up batches of random rows (`lookups_per_second`, rows). `resident_mib` is the most
that this took beyond the imports, pages of mapped files included, which the system can take back.
The files are dropped from the system's cache before. The budget is 30 s and 1 GiB a host for 1.28
million records.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from tqdm import tqdm

from corm_jax.data.join import check, join
from corm_jax.errors import UserError
from corm_jax.files import write_json
from corm_jax.masks.records import KINDS, MaskRecords
from corm_jax.masks.writer import MaskWriter

GRID = (7, 7)
BATCH = 1024
BATCHES = 500
IMAGES_A_CLASS = 1300
UNITS = {"start_seconds": "s", "resident_mib": "MiB", "lookups_per_second": "rows/s"}


def image_names(count: int) -> list[str]:
    """Returns names as ImageNet's training images have them, such as n01440764_10026.JPEG."""
    rng = np.random.default_rng(0)
    classes = rng.choice(10**8, -(-count // IMAGES_A_CLASS), replace=False)
    return [
        f"n{classes[i // IMAGES_A_CLASS]:08d}_{(i % IMAGES_A_CLASS) * 37}.JPEG"
        for i in range(count)
    ]


def generate(count: int, directory: Path) -> None:
    """Writes mask records of random grids, and the images' names in another order."""
    rng = np.random.default_rng(1)
    names = image_names(count)
    with MaskWriter(directory / "masks", encoding="grid", grid=GRID, source="generated") as writer:
        for i in tqdm(rng.permutation(count), desc="generating records", disable=None):
            core, spurious = rng.integers(0, 256, (2, *GRID), np.uint8)
            writer.add(names[i], core=core, spurious=spurious)
    np.save(directory / "file_names.npy", np.array(names, np.bytes_)[rng.permutation(count)])


def measure(directory: Path) -> dict[str, float]:
    """Returns the measured values, by name; meant for a fresh process."""
    imported = memory("VmRSS")
    started = time.perf_counter()
    records = MaskRecords.open(directory / "masks")
    joined = join(np.load(directory / "file_names.npy"), records.file_names)
    check(joined, records.file_names, 0.0, str(records.path))
    has = {kind: records.has(kind) for kind in KINDS}
    seconds = time.perf_counter() - started

    rng = np.random.default_rng(2)
    batches = [joined.rows[rng.integers(0, len(joined.rows), BATCH)] for _ in range(BATCHES)]
    started = time.perf_counter()
    for rows in batches:
        look_up(records, rows, has)
    rate = BATCH * BATCHES / (time.perf_counter() - started)
    return {
        "start_seconds": seconds,
        "resident_mib": memory("VmHWM") - imported,
        "lookups_per_second": rate,
    }


def look_up(records: MaskRecords, rows: np.ndarray, has: dict[str, np.ndarray]) -> None:
    """Looks up all that a batch needs of its rows."""
    records.boxes(rows)
    for kind in KINDS:
        records.grids(kind, rows) * has[kind][rows, None, None]


def memory(field: str) -> float:
    """Returns a field of this process's /proc/self/status in MiB: VmRSS now, VmHWM at most."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) / 1024
    raise UserError(f"/proc/self/status has no {field}: this benchmark needs Linux")


def drop_from_cache(directory: Path) -> None:
    """Asks the system to forget the files' pages, so that they are read from the disk again."""
    for path in directory.rglob("*.*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure_in_fresh_process(directory: Path) -> dict[str, float]:
    """Returns what `measure` returns in a process of its own."""
    drop_from_cache(directory)
    command = [sys.executable, __file__, "--measure", str(directory)]
    process = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(process.stdout)


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--records", type=int, default=1_280_000, help="number of records")
    parser.add_argument("--workdir", type=Path, help="where to generate (default: temporary files)")
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure)))
        return 0

    if arguments.workdir:
        arguments.workdir.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=arguments.workdir) as directory:
            generate(arguments.records, Path(directory))
            values = measure_in_fresh_process(Path(directory))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1

    print(f"{arguments.records} records with {GRID[0]}x{GRID[1]} grids, {os.cpu_count()} cores\n")
    print("| name | value | unit |\n|---|---|---|")
    for name, unit in UNITS.items():
        print(f"| {name} | {values[name]:,.2f} | {unit} |")
    if arguments.json:
        records = [{"name": n, "value": values[n], "unit": unit} for n, unit in UNITS.items()]
        write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
