"""Last-layer methods: the head of a trained model is trained, all else stays as it is.

python -m corm_jax.main --config=configs/finetune.py:demo,dfr --config.init=runs/demo/vit_erm
python -m corm_jax.main --config=configs/finetune.py:demo,core_head --config.init=runs/demo/vit_erm

`--config.init` names the workdir of a finished run or a file of weights (`corm_jax/init.py`); of
another model than the variant's vision transformer, add `--config.model.name`.

- `dfr`: deep feature reweighting (Kirichenko, Izmailov and Wilson 2022, arXiv:2204.02937): a fresh
  head on features of images whose background does not tell the class. The paper takes held-out
  images, as many of each group of class and background, which needs group labels; standardises
  their features; and averages logistic regressions with an L1 penalty. Project choices here: masks
  instead of group labels, so training images, each before another image's background; AdamW, whose
  weight decay is near an L2 penalty; one head. Images without mask are left out.
- `core_head`: the head goes on from where it is, by the objective `corm` (noise outside the core).

On 2 CPU cores half a minute of training each. Expect, in %, from the demo's ERM (one seed; the rate
and the number of steps were tried on the demo alone, on this very seed):

              clean  core  spurious  counterfactual
    ERM        95.6  76.7      83.2            43.0
    dfr        75.2  66.9      59.6            62.0
    core_head  95.2  80.3      83.5            39.3

What the frozen features do not tell apart no head can: `dfr` turns from the texture to the shape,
at the price of accuracy where the texture agrees; `core_head` gains against noise alone.
"""

from ml_collections import ConfigDict

from corm_jax.recipes import finetune


def get_config(argument: str = "demo,dfr") -> ConfigDict:
    """Returns the config of "VARIANT,METHOD": demo, imagenet or folder; dfr or core_head."""
    return finetune(argument)
