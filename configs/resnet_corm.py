"""Core Risk Minimization of a residual network.

python -m corm_jax.main --config=configs/resnet_corm.py
"""

from ml_collections import ConfigDict

from corm_jax.recipes import resnet


def get_config(argument: str = "demo") -> ConfigDict:
    """Returns the config of a variant: demo, imagenet or folder; `,OBJECTIVE` may follow."""
    return resnet(argument, objective="corm")
