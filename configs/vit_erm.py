"""Empirical risk minimization of a vision transformer.

python -m corm_jax.main --config=configs/vit_erm.py

On 2 CPU cores 75 seconds of training. Expect, over seeds, 96 % clean, 77 % core and 44 %
counterfactual accuracy: it leans on the background.
"""

from ml_collections import ConfigDict

from corm_jax.recipes import vit


def get_config(argument: str = "demo") -> ConfigDict:
    """Returns the config of a variant: demo, imagenet or folder; `,OBJECTIVE` may follow."""
    return vit(argument, objective="erm")
