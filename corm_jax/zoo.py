"""Many models by the same protocols: those of a zoo's config whose weights are there."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ml_collections import ConfigDict

from corm_jax.errors import UserError
from corm_jax.evaluation import format_rows, format_value

SHOWN = ("clean", "core", "spurious", "rcs", "swapped_background", "grey_background", "grey_object")


class Entry(NamedTuple):
    """A model of a zoo.

    Attributes:
      name: of its directory.
      family: of its architecture or training, for reports.
      model: LIBRARY:NAME, as `corm_jax.adapters.load` takes it.
      file: of its weights, in the directory of weights.
      source: where the file comes from.
      image_size: height and width of its images in pixels.
      center_crop_share: side of the central square over the image's shorter side.
    """

    name: str
    family: str
    model: str
    file: str
    source: str
    image_size: int
    center_crop_share: float


def read_entries(config: ConfigDict, where: str) -> list[Entry]:
    """Returns the models of a zoo's config.

    Raises:
      UserError: if it is no config of a zoo; names the model and the field.
    """
    models = config.get("models")
    if not models:
        raise UserError(f"{where} names no models: it is not a zoo, such as configs/zoo.py")
    entries = []
    for place, fields in enumerate(models):
        fields = dict(fields)
        if set(fields) != set(Entry._fields):
            wrong = ", ".join(sorted(set(fields) ^ set(Entry._fields)))
            raise UserError(f"{where}: model {place} has other fields than a zoo's ({wrong})")
        entries.append(Entry(**fields))
    names = [entry.name for entry in entries]
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{where} names {name} twice")
    return entries


def evaluate_zoo(
    entries: Sequence[Entry], weights: Path, evaluate: Callable[[Entry, Path], dict[str, Any]]
) -> int:
    """Evaluates the models whose weights are there, one after another; prints a table.

    A model that fails does not keep the others from being evaluated.

    Args:
      entries: of the zoo.
      weights: directory that holds their files.
      evaluate: (entry, file) -> the content of results.json.

    Returns:
      how many models failed.

    Raises:
      UserError: if no weights are there at all; says which are wanted.
    """
    files = {entry.name: weights / entry.file for entry in entries}
    missing = [entry for entry in entries if not files[entry.name].is_file()]
    if len(missing) == len(entries):
        raise UserError(
            f"{weights} holds none of the {len(entries)} files of weights, such as "
            f"{entries[0].file} from {entries[0].source}"
        )
    rows, failed = [("model", "family", *SHOWN)], []
    for number, entry in enumerate(entries, 1):
        if entry in missing:
            continue
        print(f"[{number}/{len(entries)}] {entry.name}")
        try:
            results = evaluate(entry, files[entry.name])
        except UserError as error:
            failed.append(f"{entry.name}: {error}")
            continue
        found: dict[str, float] = {}
        for protocol in results["protocols"].values():
            found |= protocol["metrics"]
        cells = (format_value(name, found[name]) if name in found else "" for name in SHOWN)
        rows.append((entry.name, entry.family, *cells))
    print(format_rows(rows))
    if missing:
        print(f"\nnot evaluated, as {weights} lacks the weights of {len(missing)} models:")
        print("\n".join(f"  {entry.file}  from {entry.source}" for entry in missing))
    if failed:
        print(f"\nfailed: {len(failed)}\n" + "\n".join(f"  {line}" for line in failed))
    return len(failed)
