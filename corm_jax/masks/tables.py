"""CSV files that others wrote."""

import csv
from collections.abc import Iterator
from pathlib import Path

from corm_jax.errors import UserError


def csv_rows(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yields (line number, cells) of each row of a CSV file, the header first, without empty lines.

    Args:
      path: the file, UTF-8 with or without a byte order mark. The line of a row whose cells hold
        line breaks is its last one.

    Raises:
      UserError: if the file cannot be read, is empty, or is no CSV; names the file and the line.
    """
    line, header = 0, None
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = csv.reader(file, strict=True)
            for cells in rows:
                line = rows.line_num
                if cells:
                    header = header or cells
                    yield line, cells
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from error
    except (csv.Error, UnicodeDecodeError) as error:
        raise UserError(f"{path} after line {line} is no CSV in UTF-8 ({error})") from error
    if header is None:
        raise UserError(f"{path} is empty")
