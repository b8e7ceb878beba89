"""Trains small models on meshes of this process's devices, or of several processes'.

python topologies.py '[["vit", DATA, FSDP, DEVICES], ..]' prints a line of JSON for each:
its losses by step and the collectives of its compiled step. CORM_COORDINATOR and its companions
make it one process of several.
"""

import json
import re
import sys
from collections import Counter

import jax
import numpy as np
from stepping import BATCH, make_batch, make_config, make_resnet, make_vit

from corm_jax import distributed
from corm_jax.sharding import batch_sharding, create_mesh, host_shard, put_batch
from corm_jax.state import abstract_state, create_state
from corm_jax.steps import make_train_step

STEPS = 20
MODELS = {"vit": make_vit(width=128), "resnet": make_resnet(width=64)}  # fsdp shards some arrays
COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")


def collectives(text: str) -> list[tuple[str, list[str]]]:
    """Returns (kind, shapes of its results) of each collective in a compiled program's text."""
    pattern = rf"= (\S+|\(.*?\)) ({'|'.join(COLLECTIVES)})(?:-start)?\("
    return [
        (kind, re.findall(r"\w+\[[\d,]*\]", shapes)) for shapes, kind in re.findall(pattern, text)
    ]


def kinds(found: list[tuple[str, list[str]]]) -> dict[str, int]:
    """Returns how many collectives there are of each kind."""
    return dict(Counter(kind for kind, _ in found))


def compile_step(config, model, mesh):
    """Returns (abstract state, compiled training step) for batches of `make_batch`."""
    abstract = abstract_state(config, model, mesh)
    step, _ = make_train_step(config, model, mesh, abstract)
    batch = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=batch_sharding(mesh)),
        make_batch(),
    )
    return abstract, step.lower(abstract, batch).compile()


def train(name, data, fsdp, devices):
    """Returns {"losses", "collectives"} of `STEPS` steps, with noise on half of the images."""
    config, model = make_config("noise", name="adamw", learning_rate=3e-3), MODELS[name]
    config.train.steps = STEPS
    mesh = create_mesh(data, fsdp, jax.devices()[:devices])
    abstract, step = compile_step(config, model, mesh)
    state, losses = create_state(config, model, abstract), []
    index, count = host_shard(mesh)
    part = slice(index * BATCH // count, (index + 1) * BATCH // count)
    for number in range(STEPS):
        batch = jax.tree.map(lambda leaf: leaf[part], make_batch(seed=number % 2))
        state, metrics = step(state, put_batch(batch, mesh))
        losses.append(float(np.asarray(metrics["loss"])))
    return {"losses": losses, "collectives": collectives(step.as_text())}


if __name__ == "__main__":
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    distributed.start_from_environment()
    for topology in json.loads(sys.argv[1]):
        print(json.dumps(train(*topology)), flush=True)
