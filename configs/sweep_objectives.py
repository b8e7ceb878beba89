"""Every objective, and what wrong masks make of some of them.

python -m corm_jax.sweep --config=configs/sweep_objectives.py --config.jobs=2
python -m corm_jax.sweep --config=configs/sweep_objectives.py:folder --config.run.data.folder=DIR

28 arms of 3 seeds, 25 for a folder: about 4 hours on 2 CPU cores.
"""

from ml_collections import ConfigDict

from corm_jax.losses.controls import CONTROLS
from corm_jax.losses.presets import PRESETS
from corm_jax.sweep.config import sweep_config


def get_config(variant: str = "demo") -> ConfigDict:
    """Returns the config of a sweep over a variant of configs/vit_corm.py: demo or folder."""
    config = sweep_config(f"configs/vit_corm.py:{variant}")
    config.run.data.selection_share = 0.2
    # Each block stands for all combinations of its values.
    config.grid = [
        {"objective": list(PRESETS)},
        {
            "objective": ["corm", "corm_plus"],
            "control": [name for name in CONTROLS if name != "none"],
        },
    ]
    if variant == "demo":  # twice the steps
        longer = {"objective": ["erm", "background_swap", "corm_plus"], "train.steps": 1_400}
        config.grid.append(longer)
    return config
