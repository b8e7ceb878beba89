"""What a trained model is, beside its weights: everything that is needed to use it elsewhere."""

import dataclasses
import math
from typing import Any, Self

import flax.linen as nn

from corm_jax.errors import UserError
from corm_jax.models import POOLS, create_model
from corm_jax.models.normalizer import Statistics

INTERPOLATIONS = ("bilinear", "bicubic")


@dataclasses.dataclass(frozen=True)
class Description:
    """What a trained model is.

    Attributes:
      model: a key of `corm_jax.models.MODELS`.
      num_classes: number of logits.
      class_names: in the order of the logits, None if unknown.
      statistics: mean and standard deviation of the input normaliser.
      image_size: height and width of its images in pixels.
      center_crop_share: side of the central square that it sees over the image's shorter side.
      interpolation: how that square is resized, one of `INTERPOLATIONS`; our own evaluation is
        always bilinear.
      head_bias: whether its head has a bias.
      global_pool: as of `corm_jax.models.create_model`.
    """

    model: str
    num_classes: int
    class_names: tuple[str, ...] | None
    statistics: Statistics
    image_size: int
    center_crop_share: float
    interpolation: str
    head_bias: bool = True
    global_pool: str = ""

    def create(self, dtype: str) -> nn.Module:
        """Creates the model with its own normaliser; `dtype` as in `create_model`.

        Raises:
          UserError: if there is no such model.
        """
        model = create_model(
            self.model,
            num_classes=self.num_classes,
            dtype=dtype,
            head_bias=self.head_bias,
            global_pool=self.global_pool,
        )
        return model.clone(statistics=self.statistics)

    def to_json(self) -> dict[str, Any]:
        """Returns the fields as JSON; the inverse of `from_json`."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        mean, std = fields.pop("statistics")
        names = self.class_names and list(self.class_names)
        return {**fields, "class_names": names, "mean": list(mean), "std": list(std)}

    @classmethod
    def from_json(cls, content: Any, where: str) -> Self:
        """Reads what `to_json` returned.

        Args:
          content: of a JSON file.
          where: the file's name, for errors.

        Raises:
          UserError: if a field is missing or of another type or number.
        """
        fields = dict(content) if isinstance(content, dict) else {}
        for key, holds in CHECKS.items():
            if key not in fields or not holds(fields[key]):
                raise UserError(
                    f"{where} describes no model of ours: {key} is {fields.get(key)!r}; "
                    "write it again"
                )
        names = fields["class_names"]
        if names is not None and len(names) != fields["num_classes"]:
            raise UserError(
                f"{where} names {len(names)} classes of {fields['num_classes']}; write it again"
            )
        return cls(
            model=fields["model"],
            num_classes=fields["num_classes"],
            class_names=None if names is None else tuple(names),
            statistics=Statistics(tuple(fields["mean"]), tuple(fields["std"])),
            image_size=fields["image_size"],
            center_crop_share=float(fields["center_crop_share"]),
            interpolation=fields["interpolation"],
            head_bias=fields["head_bias"],
            global_pool=fields["global_pool"],
        )


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _are_three(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(map(_is_number, value))


CHECKS = {
    "model": _is_text,
    "num_classes": _is_count,
    "class_names": lambda v: v is None or (isinstance(v, list) and all(map(_is_text, v))),
    "mean": _are_three,
    "std": lambda v: _are_three(v) and min(v) > 0,
    "image_size": _is_count,
    "center_crop_share": lambda v: _is_number(v) and 0 < v <= 1,
    "interpolation": lambda v: v in INTERPOLATIONS,
    "head_bias": lambda v: isinstance(v, bool),
    "global_pool": lambda v: v in ("", *POOLS),
}
