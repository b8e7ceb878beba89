"""Errors that a user can act on, and look-ups that name the nearest match."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TypeVar

T = TypeVar("T")


class UserError(Exception):
    """Something that the user can put right; `main` prints its one line and exits with code 1."""


def one_line(error: object, length: int | None = None) -> str:
    """Returns what an error says, in one line of at most `length` characters."""
    return " ".join(str(error).split())[:length]


def nearest(name: str, valid: Iterable[str]) -> str:
    """Returns a hint " (did you mean 'x'?)" for the nearest valid name, or an empty string."""
    matches = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.5)
    return f" (did you mean {matches[0]!r}?)" if matches else ""


def lookup(table: Mapping[str, T], name: str, what: str) -> T:
    """Returns `table[name]`.

    Args:
      table: the valid names and what they stand for.
      name: the name that the user gave.
      what: what the name names, for the error, such as "model".

    Raises:
      UserError: if the name is unknown; lists the valid names and the nearest one.
    """
    if name not in table:
        valid = ", ".join(sorted(table))
        raise UserError(f"unknown {what} {name!r}{nearest(name, table)}; valid: {valid}")
    return table[name]
