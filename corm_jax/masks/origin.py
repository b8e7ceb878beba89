"""What mask records were imported from, to tell whether an import is done already."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from corm_jax.errors import UserError
from corm_jax.files import read_json
from corm_jax.masks.records import MaskRecords
from corm_jax.masks.writer import file_hash

HASH = "sha256:"


def origin_of(format_name: str, path: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the field "origin" of `masks.json`.

    Args:
      format_name: name of the format.
      path: the input, a directory or a file.
      options: of the import. A path counts by what is there, not by its name.

    Returns:
      {"format": name, "options": {option: value}, "fingerprint": "sha256:..."}; the fingerprint is
      of the sorted (relative path, size) of the input's files, or of its name and size if it is a
      file, which may be an archive of many gigabytes.

    Raises:
      UserError: if the input, or what an option names, cannot be read.
    """
    return {
        "format": format_name,
        "options": {name: _json_value(value) for name, value in sorted(options.items())},
        "fingerprint": fingerprint(path),
    }


def fingerprint(path: Path) -> str:
    """Returns "sha256:" and the hash of the names and sizes of the files at `path`.

    Raises:
      UserError: if they cannot be read.
    """
    try:
        files = _files_below(path) if path.is_dir() else [(path.name, path.stat().st_size)]
    except OSError as error:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error
    lines = (os.fsencode(f"{name}\0{size}\n") for name, size in sorted(files))
    return HASH + hashlib.sha256(b"".join(lines)).hexdigest()


def _files_below(root: Path) -> list[tuple[str, int]]:
    """Returns (relative path, size in bytes) of each file."""

    def refuse(error: OSError) -> None:
        raise error

    files = []
    with tqdm(desc=f"listing {root.name}", unit="file", delay=2, leave=False, disable=None) as bar:
        for directory, _, names in os.walk(root, onerror=refuse):
            below = Path(directory)
            relative = below.relative_to(root).as_posix()
            files += [(f"{relative}/{name}", (below / name).stat().st_size) for name in names]
            bar.update(len(names))
    return files


def _json_value(value: Any) -> Any:
    """Returns an option's value as it comes back from JSON."""
    if isinstance(value, Path):
        if value.is_dir():
            return fingerprint(value)
        try:
            return HASH + file_hash(value)
        except OSError as error:
            raise UserError(f"cannot read {value}: {error.strerror}") from error
    return list(value) if isinstance(value, tuple) else value


def check_imported(output: Path, origin: Mapping[str, Any]) -> None:
    """Checks that an existing output is whole and of the origin.

    Args:
      output: exists.
      origin: see `origin_of`.

    Raises:
      UserError: if it is something else; says what differs and the way out.
    """
    way_out = "choose another --output, or remove it"
    if not (output / "masks.json").is_file():
        raise UserError(f"{output} exists already and holds no mask records; {way_out}")
    try:
        MaskRecords.open(output)
    except UserError as error:
        raise UserError(f"{error}; remove {output} and import again") from error
    before = read_json(output / "masks.json").get("origin")
    if not isinstance(before, dict):
        raise UserError(f"{output} holds mask records that were not imported; {way_out}")
    differences = _differences(before, origin)
    if differences:
        raise UserError(f"{output} was imported with {', '.join(differences)}; {way_out}")


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Returns how two origins differ, each in a few words for the user."""
    if before.get("format") != now["format"]:
        return [f"--format={before.get('format')} (now {now['format']})"]
    differences = []
    if before.get("fingerprint") != now["fingerprint"]:
        differences.append("other files in --input")
    options = before.get("options")
    options = options if isinstance(options, dict) else {}
    for name in sorted(options.keys() | now["options"].keys()):
        old, new = options.get(name), now["options"].get(name)
        if old != new and str(old).startswith(HASH) and str(new).startswith(HASH):
            differences.append(f"another --{name}")
        elif old != new:
            differences.append(f"--{name}={_shown(old)} (now {_shown(new)})")
    return differences


def _shown(value: Any) -> str:
    """Returns an option's value as it stands on the command line."""
    if isinstance(value, list):
        return ",".join(map(str, value))
    return "another file" if str(value).startswith(HASH) else str(value)
