"""Small models and their training steps on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np

from corm_jax.config import base_config
from corm_jax.models.normalizer import IMAGENET
from corm_jax.models.resnet import BasicBlock, ResNet
from corm_jax.models.vit import VisionTransformer
from corm_jax.sharding import create_mesh, put_batch
from corm_jax.state import abstract_state, create_state
from corm_jax.steps import make_train_step

CLASSES, SIZE, BATCH = 3, 8, 16


def make_config(objective, seed=0, smoothing=0.1, ema=0.0, **optimizer):
    config = base_config(objective)
    config.seed = seed
    config.data.image_size = SIZE
    config.train.update({"steps": 10, "label_smoothing": smoothing, "ema_decay": ema})
    config.optimizer.update({"name": "sgd", "learning_rate": 0.1, "warmup_steps": 0, **optimizer})
    return config


def make_vit(width=8, dtype=jnp.float32):
    return VisionTransformer(
        num_classes=CLASSES,
        patch_size=4,
        width=width,
        depth=1,
        heads=2,
        statistics=IMAGENET,
        dtype=dtype,
    )


def make_resnet(width=4):
    return ResNet(
        num_classes=CLASSES,
        stage_sizes=(1, 1),
        block=BasicBlock,
        statistics=IMAGENET,
        width=width,
        small_images=True,
    )


def make_batch(size=BATCH, seed=0):
    """Returns a loaded batch: a third without mask, a core that covers half of the others."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((size, SIZE, SIZE), np.uint8)
    mask[:, :, :4] = rng.integers(100, 256, (size, 1, 1))
    return {
        "image": rng.integers(0, 256, (size, SIZE, SIZE, 3)).astype(np.uint8),
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "id": np.arange(size, dtype=np.uint32),
        "weight": np.ones(size, np.float32),
        "has_mask": (np.arange(size) % 3 > 0).astype(np.float32),
        "mask_window": np.tile(np.array([0, 0, 1, 1], np.float32), (size, 1)),
        "core_mask": mask,
    }


class Run:
    """A model with its step on a mesh; `step` and `norms` work on copies of the state."""

    def __init__(self, config, model, mesh, initial=None):
        self.mesh, self.model, self.config = mesh, model, config
        abstract = abstract_state(config, model, mesh)
        if initial is None:
            self.initial = create_state(config, model, abstract)
        else:
            shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
            self.initial = jax.device_put(initial, shardings)
        self.donating_step, self._norms = make_train_step(config, model, mesh, abstract)

    def step(self, state, batch):
        copy = jax.tree.map(jnp.copy, state)
        return self.donating_step(copy, put_batch(batch, self.mesh))

    def norms(self, state, batch):
        return self._norms(state, put_batch(batch, self.mesh))

    def train(self, steps):
        """Returns (states, metrics) on the host, of each step."""
        state, states, history = self.initial, [jax.device_get(self.initial)], []
        for number in range(steps):
            state, metrics = self.step(state, make_batch(seed=number))
            states.append(jax.device_get(state))
            history.append(jax.device_get(metrics))
        return states, history


def one_device():
    return create_mesh(1, 1, jax.devices()[:1])
