"""What loading costs: JPEG decoding alone, the image pipeline, and the pipeline joined with masks.

    pip install simplejpeg opencv-python-headless
    python benchmarks/input_pipeline.py --json input_pipeline.json

Draws images of ImageNet's size (500 x 375 pixels, 116 kB), packs them as the ILSVRC archives,
prepares those by TFDS's own builder, writes mask records for them, and loads training batches by
the loader that training uses. Beside it runs the floor: libjpeg-turbo, crop and resize of the same
images in a plain loop, one thread a core (simplejpeg and OpenCV). Rounds are interleaved; a ratio
is the median over rounds of the ratio within a round. Ratios are of images a second of CPU time,
which other programs on the machine disturb least; those of wall-clock time stand beside them.
"""

import argparse
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import simplejpeg
from PIL import Image

from corm_jax.files import write_json
from corm_jax.masks import png
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import MaskWriter
from corm_jax.terminal import set_up_terminal

HEIGHT, WIDTH, QUALITY = 375, 500, 90
WNIDS = ("n01440764", "n01443537")
IMAGE_SIZE = 224
AREA = (0.25, 1.0)  # of the crops, as in the recipes for ImageNet
BATCH_SIZE = 64
CENTER_CROP = {"type": "center_crop", "resize": 256, "crop": 224}

# name in the JSON -> (numerator, denominator)
RATIOS = {
    "image_over_decode": ("image", "decode"),
    "image_over_floor": ("image", "floor"),
    "joined_over_image": ("joined_7x7", "image"),
    "joined_png_over_image": ("joined_png_224", "image"),
}


@dataclass(frozen=True)
class Rate:
    """Images a second of wall-clock time, and of CPU time of all threads together."""

    wall: float
    cpu: float


def photograph(rng: np.random.Generator) -> bytes:
    """Returns a JPEG whose spectrum falls as 1/f, as that of photographs, with coloured detail."""
    vertical = np.fft.fftfreq(HEIGHT)[:, None]
    frequency = np.hypot(vertical, np.fft.rfftfreq(WIDTH)[None])
    frequency[0, 0] = 1

    def noise() -> np.ndarray:
        phase = np.exp(2j * np.pi * rng.random(frequency.shape))
        return np.fft.irfft2(phase / frequency, s=(HEIGHT, WIDTH))

    grey = noise()
    colours = np.stack([grey + 0.3 * noise() for _ in range(3)], axis=-1)
    pixels = 128 + 50 * (colours - colours.mean()) / colours.std()
    file = io.BytesIO()
    Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=QUALITY)
    return file.getvalue()


def write_tar(path: Path, files: dict[str, bytes]) -> bytes:
    """Writes a tar file and returns its bytes."""
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
    return path.read_bytes()


def prepare_images(workdir: Path, count: int) -> Path:
    """Prepares `count` training images as imagenet2012; returns the TFDS data directory."""
    from corm_jax.data.prepare import prepare

    archives, rng = workdir / "archives", np.random.default_rng(0)
    archives.mkdir()
    inner = {}
    for number, wnid in enumerate(WNIDS):
        names = [f"{wnid}_{i}.JPEG" for i in range(number, count, len(WNIDS))]
        files = {name: photograph(rng) for name in names}
        inner[f"{wnid}.tar"] = write_tar(archives / "inner.tar", files)
    write_tar(archives / "ILSVRC2012_img_train.tar", inner)
    validation = {"ILSVRC2012_val_00000001.JPEG": photograph(rng)}
    write_tar(archives / "ILSVRC2012_img_val.tar", validation)
    prepare("imagenet2012", workdir / "data", archives)
    return workdir / "data"


def write_masks(workdir: Path, names: list[str]) -> dict[str, MaskRecords]:
    """Writes soft masks, random on 7 x 7 cells: as grids, and as PNG of 224 x 224 pixels."""
    rng = np.random.default_rng(0)
    grids = rng.integers(0, 256, (len(names), 7, 7), np.uint8)
    with MaskWriter(workdir / "7x7", encoding="grid", grid=(7, 7), frame=CENTER_CROP) as writer:
        for name, grid in zip(names, grids, strict=True):
            writer.add(name, core=grid)
    with MaskWriter(workdir / "png", encoding="png", frame=CENTER_CROP) as writer:
        for name, grid in zip(names, grids, strict=True):
            mask = Image.fromarray(grid).resize((224, 224), Image.Resampling.BILINEAR)
            writer.add(name, core=png.encode(np.asarray(mask)))
    return {
        "joined_7x7": MaskRecords.open(workdir / "7x7"),
        "joined_png_224": MaskRecords.open(workdir / "png"),
    }


def random_crops(count: int, rng: np.random.Generator) -> Iterator[tuple[slice, slice]]:
    """Yields windows as random resized crops choose them."""
    for _ in range(count):
        area = rng.uniform(*AREA) * HEIGHT * WIDTH
        aspect = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        height = min(HEIGHT, round(np.sqrt(area / aspect)))
        width = min(WIDTH, round(np.sqrt(area * aspect)))
        top = rng.integers(HEIGHT - height + 1)
        left = rng.integers(WIDTH - width + 1)
        yield slice(top, top + height), slice(left, left + width)


def floor(encoded: list[bytes], count: int, rng: np.random.Generator) -> None:
    """Decodes, crops and resizes `count` images in plain loops, one thread a core."""
    threads = os.cpu_count() or 1

    def loop(part: list[tuple[int, tuple[slice, slice]]]) -> None:
        for index, window in part:
            image = simplejpeg.decode_jpeg(encoded[index], "RGB")
            cv2.resize(image[window], (IMAGE_SIZE, IMAGE_SIZE), interpolation=cv2.INTER_LINEAR)

    work = [(i % len(encoded), crop) for i, crop in enumerate(random_crops(count, rng))]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(loop, [work[i::threads] for i in range(threads)]))


def measure(run: Callable[[], int]) -> Rate:
    """Returns the rate of a function that returns how many images it took."""
    wall, cpu = time.perf_counter(), time.process_time()
    images = run()
    return Rate(images / (time.perf_counter() - wall), images / (time.process_time() - cpu))


def candidates(workdir: Path, images: int, batches: int) -> dict[str, Callable[[], Rate]]:
    """Returns what is compared: name -> function that runs once and measures."""
    from corm_jax.data import order, preprocess
    from corm_jax.data.pipeline import Loader, Split
    from corm_jax.data.tf_import import tf
    from corm_jax.data.tfds_source import TfdsImages, find_prepared

    source = TfdsImages(find_prepared("imagenet2012", prepare_images(workdir, images)), "train")
    names = [os.fsdecode(name) for name in source.file_names]
    masks = write_masks(workdir, names)
    encoded = [data for data, _ in source.read(range(images))]
    print(f"{images} images of {sum(map(len, encoded)) / images / 1000:.0f} kB", file=sys.stderr)

    def decode_whole(example: preprocess.Example) -> preprocess.Example:
        image = tf.io.decode_jpeg(example["image_bytes"], 3, dct_method="INTEGER_ACCURATE")
        return {"label": example["label"], "pixel": image[0, 0]}

    def image_alone(example: preprocess.Example) -> preprocess.Example:
        """Stands in for locating the crop in the mask's frame."""
        return {**example, "mask_window": tf.zeros(4)}

    image_operations = [
        preprocess.read_size,
        preprocess.random_resized_crop(seed=0, area=AREA),
        preprocess.decode(image_size=IMAGE_SIZE, antialias=False),
        image_alone,
        preprocess.random_flip(seed=0),
        preprocess.keep(keys=["image", "label", "id", "weight"]),
    ]

    def loading(records: MaskRecords, joined: bool, operations: list | None = None) -> Callable:
        rows = np.arange(images) if joined else np.full(images, -1)
        loader = Loader(
            split=Split(source, records, rows, np.full(images, joined)),
            select=order.training_order(images, seed=0, batch_size=BATCH_SIZE),
            operations=operations
            or preprocess.training(records, image_size=IMAGE_SIZE, area=AREA, flip=True, seed=0),
            bad_images="error",
        )

        def run() -> Rate:
            warm_up = 4  # consumed faster than made, so that no batch is ready beforehand
            loaded = loader.batches(0, warm_up + batches)
            for _ in range(warm_up):
                next(loaded)
            return measure(lambda: sum(len(batch["label"]) for batch in loaded))

        return run

    def run_floor() -> Rate:
        count = batches * BATCH_SIZE

        def run() -> int:
            floor(encoded, count, np.random.default_rng(0))
            return count

        return measure(run)

    return {
        "floor": run_floor,
        "decode": loading(masks["joined_7x7"], False, [decode_whole]),
        "image": loading(masks["joined_7x7"], False, image_operations),
        **{name: loading(records, True) for name, records in masks.items()},
    }


def main() -> int:
    """Runs the benchmark; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--batches", type=int, default=24, help=f"of {BATCH_SIZE} images, a round")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    arguments = parser.parse_args()
    set_up_terminal()
    cv2.setNumThreads(1)

    with tempfile.TemporaryDirectory() as workdir:
        runs = candidates(Path(workdir), arguments.images, arguments.batches)
        rates: dict[str, list[Rate]] = {name: [] for name in runs}
        for number in range(arguments.rounds):
            print(f"round {number + 1} of {arguments.rounds}", file=sys.stderr)
            for name, run in runs.items():
                rates[name].append(run())

    records = []
    print(f"\nmedian of {arguments.rounds} interleaved rounds, {os.cpu_count()} cores\n")
    print("| | images/s | images/s of CPU time | ms of CPU time an image |")
    print("|---|---|---|---|")
    for name, measured in rates.items():
        wall, cpu = (
            statistics.median(getattr(r, kind) for r in measured) for kind in ("wall", "cpu")
        )
        print(f"| {name} | {wall:.0f} | {cpu:.0f} | {1000 / cpu:.2f} |")
        records.append({"name": f"{name}_images_per_second", "value": wall, "unit": "images/s"})
        records.append({"name": f"{name}_cpu_ms", "value": 1000 / cpu, "unit": "ms/image"})
    print("\n| ratio | of CPU time | of wall-clock time |\n|---|---|---|")
    for name, (numerator, denominator) in RATIOS.items():
        pairs = list(zip(rates[numerator], rates[denominator], strict=True))
        by_cpu = statistics.median(a.cpu / b.cpu for a, b in pairs)
        by_wall = statistics.median(a.wall / b.wall for a, b in pairs)
        print(f"| {name} | {by_cpu:.3f} | {by_wall:.3f} |")
        records.append({"name": name, "value": by_cpu, "unit": "ratio"})
        records.append({"name": f"{name}_wall", "value": by_wall, "unit": "ratio"})
    if arguments.json:
        write_json(arguments.json, records)
    return 0


if __name__ == "__main__":
    sys.exit(main())
