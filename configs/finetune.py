"""Last-layer methods on a trained model.

python -m corm_jax.main --config=configs/finetune.py:demo,dfr --config.init=runs/demo/vit_erm
"""

from ml_collections import ConfigDict

from corm_jax.recipes import finetune


def get_config(argument: str = "demo,dfr") -> ConfigDict:
    """Returns the config of "VARIANT,METHOD": demo, imagenet or folder; dfr or core_head."""
    return finetune(argument)
