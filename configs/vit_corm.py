"""Core Risk Minimization of a vision transformer.

python -m corm_jax.main --config=configs/vit_corm.py

On 2 CPU cores 130 seconds of training. Expect, over seeds, 97 % clean, 94 % core and 62 %
counterfactual accuracy.
"""

from ml_collections import ConfigDict

from corm_jax.recipes import vit


def get_config(argument: str = "demo") -> ConfigDict:
    """Returns the config of a variant: demo, imagenet or folder; `,OBJECTIVE` may follow."""
    return vit(argument, objective="corm")
