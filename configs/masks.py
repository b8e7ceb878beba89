"""Mask records built from what an encoder looks at, as Salient ImageNet was.

python -m corm_jax.masks build --config=configs/masks.py
"""

from ml_collections import ConfigDict

from corm_jax.masks.building.config import build_config


def get_config(variant: str = "demo") -> ConfigDict:
    """Returns the config of a variant: demo, imagenet or folder."""
    return build_config(variant)
