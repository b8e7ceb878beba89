"""Check a directory of mask records: checksums, schema, sizes, keys, coverage.

Prints everything that is wrong, with file and row, and exits with code 1; otherwise prints how
many records the classes have.
"""

import argparse
import hashlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from corm_jax.errors import UserError
from corm_jax.masks import checks, pixels, show, stats
from corm_jax.masks.coverage import coverage
from corm_jax.masks.records import (
    KINDS,
    MaskRecords,
    array_files,
    load_array,
    map_bytes,
    read_header,
)

SHOWN = 100  # problems of one check; a million lines help nobody
HASHED = 1 << 20  # bytes at once
GRIDS = 1 << 14  # looked at at once


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("records", type=Path, metavar="DIR", help="directory of mask records")
    parser.add_argument("--quick", action="store_true", help="without looking at the masks' pixels")


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    path = arguments.records
    problems = verify(path, quick=arguments.quick)
    if problems:
        raise UserError("\n".join([f"{path} is damaged:", *problems]))
    records = MaskRecords.open(path)
    print(coverage(records))
    print(f"{path}: {len(records.file_names)} records, all good")


def verify(path: Path, *, quick: bool) -> list[str]:
    """Returns a line for everything that is wrong with a directory of mask records.

    Args:
      path: the directory.
      quick: whether to leave out the pixels of the masks.

    Raises:
      UserError: if `masks.json` is missing or does not follow the schema: without it, nothing can
        be said of the rest.
    """
    header = read_header(path)
    bins = () if header["grid"] else tuple(f"{kind}.bin" for kind in KINDS)
    expected = {*array_files(header), *bins}
    problems = list(_files(path, header, expected))

    arrays, pngs = {}, {}
    for name, (shape, dtype) in array_files(header).items():
        if (path / name).exists():
            try:
                arrays[name] = load_array(path / name, shape, dtype)
            except UserError as error:
                problems.append(str(error))
    for name in bins:
        if (path / name).exists():
            pngs[name.removesuffix(".bin")] = map_bytes(path / name)

    found = list(checks.row_checks(path, arrays, pngs))
    for kind, data in pngs.items():
        if (spans := arrays.get(f"{kind}_spans.npy")) is not None:
            found.append(checks.gaps_between_spans(spans, len(data), f"{path}/{kind}_spans.npy"))
            if not quick:
                found.append(_undecodable(path, kind, spans, data, header.get("size")))
    for kind in KINDS:
        if not quick and {f"{kind}.npy", "kinds.npy"} <= arrays.keys():
            has = checks.has_kind(arrays["kinds.npy"], kind)
            found.append(_unannounced(path, kind, has, arrays[f"{kind}.npy"]))
    return [*problems, *itertools.chain.from_iterable(map(_capped, found))]


def _capped(problems: Iterator[str]) -> Iterator[str]:
    """Yields the first problems of one check, and how many more there are."""
    yield from itertools.islice(problems, SHOWN)
    more = sum(1 for _ in problems)
    if more:
        yield f"... and {more} more of these"


def _files(path: Path, header: dict[str, Any], expected: set[str]) -> Iterator[str]:
    """Yields the files that are missing, that do not belong there, or whose content changed."""
    hashes = header.get("sha256")
    if not isinstance(hashes, dict):
        yield f"{path}/masks.json has no checksums (sha256); write the records again"
        hashes = {}
    pictures = {stats.PICTURE, show.PICTURE}
    files = {file.name for file in path.iterdir() if not file.name.startswith(".")}
    for name in sorted(files - expected - pictures - {"masks.json"}):
        yield f"{path}/{name} is no file of mask records; remove it"
    for name in sorted(hashes.keys() - expected):
        yield f"{path}/masks.json lists {name!r}, which such records do not have"
    for name in sorted(expected - files):
        yield f"{path}/{name} is missing; write the records again"
    present = sorted(expected & files)
    sizes = [(path / name).stat().st_size for name in present]
    with tqdm(
        total=sum(sizes), unit="B", unit_scale=True, desc="checksums", disable=None, leave=False
    ) as bar:
        for name in present:
            if name not in hashes:
                yield f"{path}/masks.json lists no checksum of {name}; write the records again"
            elif _hash(path / name, bar) != hashes[name]:
                yield (
                    f"{path}/{name} has changed since it was written (another SHA-256 than in "
                    "masks.json); copy or write the records again"
                )


def _hash(path: Path, bar: tqdm) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while data := file.read(HASHED):
            digest.update(data)
            bar.update(len(data))
    return digest.hexdigest()


def _undecodable(
    path: Path, kind: str, spans: np.ndarray, data: np.ndarray, size: list[int] | None
) -> Iterator[str]:
    """Yields the masks that are not grey PNG files of that size, of the spans within the data."""
    rows = np.flatnonzero(checks.spans_inside(spans, len(data)) & (spans[:, 1] > 0))
    for row in tqdm(rows, unit="mask", desc=f"decoding {kind}", disable=None, leave=False):
        offset, length = spans[row]
        what = f"{path}/{kind}.bin: the mask of row {row}, {length} bytes from {offset},"
        try:
            mask = pixels.decode(data[offset : offset + length].tobytes(), what)
        except UserError as error:
            yield str(error)
            continue
        if size is not None and list(mask.shape) != size:
            yield f"{what} is {mask.shape}, not of the size {size} that masks.json tells"


def _unannounced(path: Path, kind: str, has: np.ndarray, grids: np.ndarray) -> Iterator[str]:
    """Yields the rows that have a mask of which `kinds.npy` says nothing.

    The other way round is no fault: a mask may be black everywhere.
    """
    starts = range(0, len(grids), GRIDS)
    for start in tqdm(starts, desc=f"reading {kind}", disable=None, leave=False):
        part = slice(start, start + GRIDS)
        for row in start + np.flatnonzero(grids[part].any(axis=(1, 2)) & ~has[part]):
            yield f"{path}/{kind}.npy: row {row} has a mask, which kinds.npy denies"
