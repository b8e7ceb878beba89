"""How much core accuracy CoRM gains by the weight and the strength of its noise, at which cost.

python -m corm_jax.sweep --config=configs/sweep_pareto.py --config.jobs=2

11 arms of 3 seeds: about 1.5 hours on 2 CPU cores.
"""

from ml_collections import ConfigDict

from corm_jax.sweep.config import sweep_config


def get_config(variant: str = "demo") -> ConfigDict:
    """Returns the config of a sweep over a variant of configs/vit_corm.py: demo or folder."""
    config = sweep_config(f"configs/vit_corm.py:{variant}")
    config.run.data.selection_share = 0.2
    # Each block stands for all combinations of its values.
    config.grid = [
        {"objective": "erm"},
        {
            "objective": "corm",
            "terms.noisy.sigma": [0.25, 0.5, 1.0],
            "terms.noisy.weight": [0.3, 1.0, 3.0],
        },
        {"objective": "corm", "control": "shuffled"},
    ]
    return config
