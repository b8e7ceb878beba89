"""Fills in the $words of a manifest: fill.py MANIFEST KEY=TEXT KEY:=JSON ... -- COMMAND...

Every value is written as JSON on one line, so that nothing in it can become YAML of its own.
COMMAND is the value of $command, with its words safe from Kubernetes' expansion of $(NAME).
"""

import json
import string
import sys
from collections.abc import Sequence
from pathlib import Path


def parse(arguments: Sequence[str]) -> dict[str, object]:
    """Returns the values of KEY=TEXT, KEY:=JSON and, as `command`, of what follows "--"."""
    assignments, command = arguments, []
    if "--" in arguments:
        end = arguments.index("--")
        assignments, command = arguments[:end], arguments[end + 1 :]
    values: dict[str, object] = {}
    for assignment in assignments:
        key, _, text = assignment.partition("=")
        values[key.removesuffix(":")] = json.loads(text) if key.endswith(":") else text
    # Kubernetes makes $ of $$, and replaces $(NAME) where a variable has the name.
    return values | {"command": [word.replace("$", "$$") for word in command]}


def fill(manifest: str, values: dict[str, object]) -> str:
    """Returns `manifest` with $KEY replaced by the value as JSON; KeyError if one is missing."""
    return string.Template(manifest).substitute(
        {key: json.dumps(value) for key, value in values.items()}
    )


if __name__ == "__main__":
    print(fill(Path(sys.argv[1]).read_text(), parse(sys.argv[2:])), end="")
