"""`spurious_shapes`: a data set, drawn on this machine, whose backgrounds give the class away.

The shape of the object decides the class. The texture of the background agrees with the class at
the configured rate in `train` and `validation`, and is independent of it in `counterfactual`.
"""

import dataclasses
import io
from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds
from PIL import Image

from corm_jax.data import drawing

IMAGE_SIZE = 48
SEED = 2022
JPEG_QUALITY = 95


@dataclasses.dataclass(kw_only=True)
class SpuriousShapesConfig(tfds.core.BuilderConfig):
    """How strongly the background agrees with the class, and how many images there are."""

    # Share of images in [0, 1] whose background is the class's own; the others' is drawn
    # evenly from the other classes' backgrounds.
    agreement: float = 0.95
    train_images: int = 6000
    validation_images: int = 1200


class SpuriousShapes(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of `spurious_shapes`; see the module's docstring."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS: tuple[SpuriousShapesConfig, ...] = (
        SpuriousShapesConfig(name="rate_95", description="Backgrounds agree in 95 % of images."),
        SpuriousShapesConfig(
            name="rate_80", description="Backgrounds agree in 80 % of images.", agreement=0.8
        ),
        SpuriousShapesConfig(
            name="tiny",
            description="rate_95 with a few images, for tests.",
            train_images=96,
            validation_images=48,
        ),
    )

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=__doc__,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(
                        shape=(IMAGE_SIZE, IMAGE_SIZE, 3), encoding_format="jpeg"
                    ),
                    "core_mask": tfds.features.Image(
                        shape=(IMAGE_SIZE, IMAGE_SIZE, 1), encoding_format="png"
                    ),
                    "label": tfds.features.ClassLabel(names=drawing.SHAPES),
                    "background": tfds.features.ClassLabel(names=tuple(drawing.TEXTURES)),
                    "file_name": tfds.features.Text(),
                }
            ),
            supervised_keys=("image", "label"),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        config = self.builder_config
        even = 1 / len(drawing.TEXTURES)
        return {
            "train": self._generate_examples("train", config.train_images, config.agreement),
            "validation": self._generate_examples(
                "validation", config.validation_images, config.agreement
            ),
            "counterfactual": self._generate_examples(
                "counterfactual", config.validation_images, even
            ),
        }

    def _generate_examples(
        self, split: str, count: int, agreement: float
    ) -> Iterator[tuple[str, dict]]:
        classes, textures = len(drawing.SHAPES), tuple(drawing.TEXTURES)
        split_seed = ("train", "validation", "counterfactual").index(split)
        for index in range(count):
            rng = np.random.default_rng((SEED, split_seed, index))
            label = index % classes
            background = label
            if rng.random() >= agreement:
                background = (label + rng.integers(1, classes)) % classes
            image, mask = drawing.draw_image(
                drawing.SHAPES[label], textures[background], IMAGE_SIZE, rng
            )
            file_name = f"{split}_{index:06d}.JPEG"
            jpeg = io.BytesIO()
            Image.fromarray(image).save(jpeg, "JPEG", quality=JPEG_QUALITY)
            jpeg.seek(0)
            yield (
                file_name,
                {
                    "image": jpeg,
                    "core_mask": mask[..., None],
                    "label": label,
                    "background": background,
                    "file_name": file_name,
                },
            )
