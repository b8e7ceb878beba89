"""Files below a directory."""

import os
from collections.abc import Iterator
from pathlib import Path

from corm_jax.errors import UserError


def visible_files(root: Path) -> Iterator[str]:
    """Yields the paths, relative to `root`, of the files below it, in a fixed order.

    Hidden files and directories (`.DS_Store`, `._x.png`) are left out.

    Raises:
      UserError: if `root` is no directory, or one below it cannot be read.
    """
    if not root.is_dir():
        raise UserError(f"{root} is not a directory")

    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read {error.filename}: {error.strerror}") from error

    for directory, directories, files in os.walk(root, onerror=refuse):
        directories[:] = sorted(name for name in directories if not name.startswith("."))
        below = Path(directory).relative_to(root)
        for name in sorted(files):
            if not name.startswith("."):
                yield str(below / name)
