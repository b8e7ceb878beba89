"""File names of images made from templates such as `{stem}.JPEG`."""

import re
from collections.abc import Mapping, Sequence

from corm_jax.errors import UserError, nearest

FIELD = re.compile(r"\{(\w*)\}")


def check_template(template: str, fields: Sequence[str]) -> None:
    """Raises UserError unless each {field} of a template of `--name` is one of `fields`."""
    for field in FIELD.findall(template):
        if field not in fields:
            valid = ", ".join(f"{{{name}}}" for name in fields)
            raise UserError(
                f"--name={template}: unknown {{{field}}}{nearest(field, fields)}; valid: {valid}"
            )
    if not FIELD.search(template):
        raise UserError(f"--name={template} gives every image one name; use a {{field}}")


def fill(template: str, values: Mapping[str, str]) -> str:
    """Returns a checked template with its fields replaced; values are taken as they are."""
    return FIELD.sub(lambda match: values[match[1]], template)
