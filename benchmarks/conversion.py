"""Whether our models are those of timm, torchvision, open_clip: logits and gradients.

    python benchmarks/conversion.py --json conversion.json

For each name and library: random weights and running averages are converted from PyTorch and to it;
errors are relative to the largest value of the library's. Transformers see images of the size that
they are made for. Convolutional networks see 64 pixels, and for the gradient 32 (CLIP's, which end
in an attention over 64 pixels, those): where a rectifier's input is within rounding of zero, two
correct programs may take another side of it, and gradients jump; the larger an image, the likelier
it has such a one. In one of 64 pixels, two of the 2.4 million rectifiers of a resnext101_32x8d
differ between PyTorch in float32 and in float64, and with them its gradients by 6e-3, its logits by
1e-6. The gradient's error is the median over three images. Of CLIP's, these are the image towers,
with a linear head; tests compare the text towers.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import flax.linen as nn
from parity import CLASSES, LIBRARIES, Parity, compare, define_operators
from tqdm import tqdm

from corm_jax.files import write_json
from corm_jax.models import MODELS, create_model, default_image_size
from corm_jax.models.clip import CLIPClassifier
from corm_jax.terminal import set_up_terminal
from corm_jax.torch_weights import FAMILIES

CONVOLUTIONAL_SIZES = (64, 32)  # pixels, for logits and for gradients
LIMITS = {"logits": 1e-4, "gradient": 1e-3}


def image_sizes(model: nn.Module, name: str) -> tuple[int, int]:
    """Returns the sizes of the images to compare logits and gradients on, in pixels."""
    if getattr(model, "patch_size", 1) > 1:
        return (default_image_size(name),) * 2
    logits_size, gradient_size = CONVOLUTIONAL_SIZES
    return logits_size, logits_size if isinstance(model, CLIPClassifier) else gradient_size


def measure(names: list[str]) -> dict[tuple[str, str], Parity]:
    """Compares each name with each library that has it; prints a table's rows."""
    found = {}
    print("| model | library | logits | gradient | round trip |\n|---|---|---|---|---|")
    for name in tqdm(names, desc="comparing", unit="model", disable=None):
        ours = create_model(name, num_classes=CLASSES, dtype="float32")
        size, gradient_size = image_sizes(ours, name)
        for library in FAMILIES[type(ours)]:
            if theirs := LIBRARIES[library](name, size):
                parity = compare(
                    ours, theirs, library=library, image_size=size, gradient_size=gradient_size
                )
                found[name, library] = parity
                exact = "exact" if parity.exact else "CHANGED"
                tqdm.write(
                    f"| {name} | {library} | {parity.logits:.1e} | {parity.gradient:.1e} | "
                    f"{exact} |"
                )
    return found


def summarize(found: dict[tuple[str, str], Parity]) -> list[dict[str, Any]]:
    """Returns the records: the worst of all models, then each model's."""
    values = found.values()
    records = [
        {
            "name": "max_relative_error",
            "value": max(parity.logits for parity in values),
            "unit": "ratio",
        },
        {
            "name": "max_relative_gradient_error",
            "value": max(parity.gradient for parity in values),
            "unit": "ratio",
        },
        {"name": "names", "value": len({name for name, _ in found}), "unit": "models"},
        {
            "name": "changed_by_round_trip",
            "value": sum(not parity.exact for parity in values),
            "unit": "models",
        },
    ]
    for (name, library), parity in found.items():
        where = f"{name}/{library}"
        records += [
            {"name": f"relative_error/{where}", "value": parity.logits, "unit": "ratio"},
            {"name": f"relative_gradient_error/{where}", "value": parity.gradient, "unit": "ratio"},
        ]
    return records


def main() -> int:
    """Runs the benchmark; returns the exit code: 1 if a model is off."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--names", nargs="+", default=list(MODELS), choices=MODELS, metavar="MODEL")
    parser.add_argument("--json", type=Path, help="also write [{name, value, unit}] to this file")
    arguments = parser.parse_args()

    set_up_terminal()
    define_operators()
    found = measure(arguments.names)
    if not found:
        print("error: no library has a model of these names", file=sys.stderr)
        return 1
    records = summarize(found)
    print()
    for record in records[:4]:
        print(f"{record['name']}: {record['value']:.3g}")
    if arguments.json:
        write_json(arguments.json, records)
    off = [
        f"{name} ({library})"
        for (name, library), parity in found.items()
        if not parity.exact
        or parity.logits > LIMITS["logits"]
        or parity.gradient > LIMITS["gradient"]
    ]
    if off:
        print(f"error: not the library's model: {', '.join(off)}", file=sys.stderr)
    return int(bool(off))


if __name__ == "__main__":
    sys.exit(main())
