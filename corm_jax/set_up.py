"""What a run is made of: data, model, and what observes it."""

import dataclasses
from pathlib import Path

import flax.linen as nn
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax import distributed
from corm_jax.data.dataset import Dataset, open_dataset, training_loader
from corm_jax.data.pipeline import Loader
from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.models import create_model
from corm_jax.models.normalizer import Statistics
from corm_jax.profiling import Profile, parse_steps
from corm_jax.run_evaluation import RunEvaluation
from corm_jax.sharding import create_mesh, host_shard
from corm_jax.watch import Watch


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    config: ConfigDict
    dataset: Dataset
    mesh: Mesh
    model: nn.Module
    training: Loader
    evaluation: RunEvaluation
    watch: Watch
    profile: Profile

    def describe(self) -> Description:
        """Returns what the model is."""
        data = self.config.data
        return Description(
            model=self.config.model.name,
            num_classes=self.model.num_classes,
            class_names=self.dataset.class_names,
            statistics=self.model.statistics,
            image_size=data.image_size,
            center_crop_share=data.center_crop_share,
            interpolation="bilinear",
            head_bias=self.config.model.head_bias,
            global_pool=self.config.model.global_pool,
        )


def set_up(config: ConfigDict, workdir: Path, statistics: Statistics | None) -> Setup:
    """Opens the data; writes nothing but prepared embedded data.

    Args:
      config: checked.
      workdir: of the run.
      statistics: of the model's input normaliser, None for its own.

    Raises:
      UserError: for a config or data that cannot be used; says what to do.
    """
    mesh = create_mesh(config.mesh.data, config.mesh.fsdp)
    for key, parts in (("train", config.train.microbatches), ("eval", 1)):
        if config[key].batch_size % (mesh.size * parts):
            among = f"{mesh.size} devices" + (f" x {parts} microbatches" if parts > 1 else "")
            raise UserError(
                f"config.{key}.batch_size={config[key].batch_size} is not a multiple of the {among}"
            )
    with distributed.first_alone("open_dataset"):  # it may have to prepare the data
        dataset = open_dataset(config)
    model = create_model(
        config.model.name,
        num_classes=len(dataset.class_names),
        dtype=config.model.dtype,
        head_bias=config.model.head_bias,
        global_pool=config.model.global_pool,
    )
    model = model.clone(statistics=statistics or model.statistics)
    shard = host_shard(mesh)
    watch = Watch(workdir, config.watch.stall_minutes)
    return Setup(
        config=config,
        dataset=dataset,
        mesh=mesh,
        model=model,
        training=training_loader(config, dataset.train, shard),
        evaluation=RunEvaluation(config, dataset, model, mesh, shard, watch),
        watch=watch,
        profile=Profile(workdir / "profile", parse_steps(config.profile.steps)),
    )
