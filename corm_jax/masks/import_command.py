"""Import masks of another format as mask records.

The output appears when it is complete. The same command again finds it there and does nothing.
"""

import argparse
import contextlib
import fcntl
import os
import shutil
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from corm_jax.errors import UserError, lookup
from corm_jax.files import reporting
from corm_jax.masks import archive, png
from corm_jax.masks.origin import check_imported, origin_of
from corm_jax.masks.sources import boxes, coco, folder, hard_imagenet, salient_imagenet
from corm_jax.masks.sources.source import Row, Source
from corm_jax.masks.writer import MaskWriter

# Each has a docstring that describes its format, `add_arguments(parser)` and
# `open_source(path, arguments) -> Source`.
FORMATS = {
    "salient_imagenet": salient_imagenet,
    "folder": folder,
    "boxes": boxes,
    "hard_imagenet": hard_imagenet,
    "coco": coco,
}
Encoded = tuple[str, dict[str, np.ndarray | bytes]]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that every format has."""
    parser.add_argument(
        "--format",
        required=True,
        help=f"{', '.join(FORMATS)}; --format=NAME --help shows the options of one",
    )
    parser.add_argument(
        "--input",
        type=expanded_path,
        required=True,
        help=f"the masks: a directory, or an archive of it ({', '.join(archive.SUFFIXES)})",
    )
    parser.add_argument(
        "--output", type=expanded_path, required=True, help="the directory to write"
    )
    parser.add_argument(
        "--grid",
        type=_grid,
        metavar="H,W",
        help="keep averages over a grid, such as 7,7, instead of PNG files of the masks' own size",
    )


def add_format_arguments(parser: argparse.ArgumentParser, argv: Sequence[str]) -> None:
    """Adds the arguments of the format that a command line names, if it names one.

    Args:
      parser: of the import command.
      argv: the arguments after "import".

    Raises:
      UserError: if there is no such format.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--format")
    name = first.parse_known_args(argv)[0].format
    if name is not None:
        module = lookup(FORMATS, name, "--format")
        parser.description = module.__doc__
        module.add_arguments(parser.add_argument_group(f"options of {name}"))


def expanded_path(text: str) -> Path:
    """Returns a path of the command line; a shell leaves the "~" of --input=~/masks to us."""
    return Path(text).expanduser()


def _grid(text: str) -> tuple[int, int]:
    sides = tuple(int(side) for side in text.split(",") if side.isdecimal())
    if len(sides) != 2 or min(sides) < 1 or text.count(",") != 1:
        raise argparse.ArgumentTypeError(f"{text} is not HEIGHT,WIDTH, such as 7,7")
    return sides


def run(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: if the input cannot be read or holds no masks, or the output is something else.
    """
    path, output = arguments.input, arguments.output
    if not path.exists():
        raise UserError(f"--input={path} does not exist")
    if output.resolve().is_relative_to(path.resolve()):
        raise UserError(f"--output={output} lies inside --input={path}; choose a place outside")
    common = ("format", "input", "output", "run")
    options = {name: value for name, value in vars(arguments).items() if name not in common}
    origin = origin_of(arguments.format, path, options)
    if output.exists():
        check_imported(output, origin)
        print(f"{output} is imported already")
        return
    with _working_directory(output) as working, archive.opened(path, working) as content:
        source = FORMATS[arguments.format].open_source(content, arguments)
        counts = _write(source, working / "records", arguments, origin)
        with reporting(output):
            (working / "records").rename(output)
    _print_summary(source, counts, arguments)


@contextlib.contextmanager
def _working_directory(output: Path) -> Iterator[Path]:
    """Yields an empty directory beside `output` for this process alone, removed afterwards.

    Its name is always the same one, so that what a killed import left goes with the next import.
    """
    directory = output.parent / f".{output.name}.importing"
    with reporting(output):
        directory.mkdir(parents=True, exist_ok=True)
        lock = (directory / "lock").open("w")
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UserError(f"another process is importing to {output}; wait for it") from error
        try:
            for left in directory.iterdir():
                if left.is_dir():
                    shutil.rmtree(left)
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)


def _write(
    source: Source, path: Path, arguments: argparse.Namespace, origin: dict[str, Any]
) -> Counter[str]:
    """Writes the rows of a source as mask records at `path`; returns how many have what."""
    grid, counts = arguments.grid, Counter()
    writer = MaskWriter(
        path,
        encoding="png" if grid is None else "grid",
        grid=grid,
        frame=source.frame,
        source=source.note,
        origin=origin,
    )
    with writer:
        bar = tqdm(total=len(source), desc="importing", unit="image", disable=None)
        with bar, contextlib.closing(_encoded(source, grid)) as rows:
            for file_name, masks in rows:
                writer.add(file_name, **masks)
                counts.update(["rows", *masks])
                bar.update()
        if not counts["rows"]:
            raise UserError(f"{arguments.input} holds no masks of format {arguments.format}")
    return counts


def _encoded(source: Source, grid: tuple[int, int] | None) -> Iterator[Encoded]:
    """Yields (file name, encoded masks by kind) in the order of the rows.

    Compressing takes longer than all else, and zlib lets other threads run meanwhile.
    """
    threads = os.cpu_count() or 1
    waiting: deque[Future[Encoded]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for row in source.rows():
            waiting.append(pool.submit(_encode, row, grid))
            if len(waiting) > 4 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _encode(row: Row, grid: tuple[int, int] | None) -> Encoded:
    masks = {"core": row.core, "spurious": row.spurious}
    return row.file_name, {
        kind: png.encode(mask) if grid is None else _averages(mask, grid)
        for kind, mask in masks.items()
        if mask is not None
    }


def _averages(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Returns the mean over each cell of a grid, uint8 [h, w]."""
    height, width = grid
    return np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.BOX))


def _print_summary(source: Source, counts: Counter[str], arguments: argparse.Namespace) -> None:
    output = arguments.output
    size = sum(file.stat().st_size for file in output.iterdir())
    frame = dict(source.frame)
    details = ", ".join(f"{key} {value}" for key, value in frame.items() if key != "type")
    print(
        f"{arguments.format}: {counts['rows']} images, {counts['core']} with a core mask, "
        f"{counts['spurious']} with a spurious mask"
    )
    for reason, count in source.skipped.items():
        print(f"skipped: {count} {reason}")
    print(f"frame: {frame['type']}" + (f" ({details})" if details else ""))
    print(f"written to {output} ({size / 2**20:.1f} MiB)")
