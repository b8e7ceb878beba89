"""What a run measures of its model: now and then on a subset, at the end on everything."""

import functools
import logging
from dataclasses import dataclass, replace
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict
from tqdm import tqdm

from corm_jax import distributed
from corm_jax.data.dataset import Dataset, evaluation_loader, occurring_classes
from corm_jax.data.pairs import PairedLoader, pair
from corm_jax.data.pipeline import Loader, Split
from corm_jax.protocols import PROTOCOLS, make_eval_step, measure
from corm_jax.protocols.summary import summarize
from corm_jax.protocols.types import EvalStep
from corm_jax.sharding import replicated
from corm_jax.watch import EVALUATE, Watch

logger = logging.getLogger(__name__)

MEASURED = ("clean", "complement", "ablations")


@dataclass(frozen=True)
class Final:
    """What is known at the end of a run.

    Attributes:
      metrics: of the validation split.
      selection: the same of the images that `config.data.selection_share` sets aside, if any.
      extra: of each extra set, with its number of `classes`.
      skipped: where the images are that could not be decoded.
      examples: a whole batch of the validation split, as the `ablations` protocol takes it; {} but
        in the first process.
    """

    metrics: dict[str, float]
    selection: dict[str, float]
    extra: dict[str, dict[str, float]]
    skipped: list[str]
    examples: dict[str, Any]


class RunEvaluation:
    """Evaluates the model of a run on its data set."""

    def __init__(
        self,
        config: ConfigDict,
        dataset: Dataset,
        model: nn.Module,
        mesh: Mesh,
        shard: tuple[int, int],
        watch: Watch,
    ) -> None:
        """Prepares the protocols; each is compiled when it is first used.

        Args:
          config: the run's.
          dataset: what to evaluate on.
          model: maps images to (logits, intermediates).
          mesh: where to evaluate.
          shard: (index, count) of this host.
          watch: learns of each batch.
        """
        self._watch = watch
        self._config, self._dataset, self._mesh, self._shard = config, dataset, mesh, shard
        self._steps = {
            name: make_eval_step(protocol(model, config), mesh)
            for name, protocol in PROTOCOLS.items()
            if name in MEASURED
        }

    def on_subset(self, variables: Any) -> dict[str, float]:
        """Returns the metrics of the `complement` protocol on `config.eval.subset` images."""
        loader, count = evaluation_loader(
            self._config, self._dataset.validation, self._shard, self._config.eval.subset
        )
        variables = self._whole(variables)
        return self._evaluate(self._steps["complement"], variables, loader, count, "validation")

    def final(self, variables: Any) -> Final:
        """Evaluates on all of the validation split, of what is set aside, and of the extra sets."""
        dataset, variables = self._dataset, self._whole(variables)
        metrics, pairs, skipped = self._all(variables, dataset.validation, "validation")
        selection: dict[str, float] = {}
        if dataset.selection is not None:
            selection, _, more = self._all(variables, dataset.selection, "selection")
            skipped += more
        extra = {}
        for name, split in dataset.extra.items():
            logger.info("evaluating on %d images of %s", len(split.images), name)
            classes = occurring_classes(name, split)
            protocol = functools.partial(self._steps["clean"], classes=classes)
            loader, count = evaluation_loader(self._config, split, self._shard)
            extra[name] = self._evaluate(protocol, variables, loader, count, name)
            extra[name]["classes"] = int(classes.sum())
            skipped += loader.skipped.values()
        found = distributed.merge({where: where for where in skipped})
        examples = next(_of_all_hosts(pairs).batches(0, 1)) if distributed.is_first() else {}
        return Final(metrics, selection, extra, list(found), examples)

    def _whole(self, variables: Any) -> Any:
        """Returns all of the variables on every device: gathered once, not in every batch."""
        return jax.jit(lambda tree: tree, out_shardings=replicated(self._mesh))(variables)

    def _all(
        self, variables: Any, split: Split, name: str
    ) -> tuple[dict[str, float], PairedLoader, list[str]]:
        """Returns (metrics of each protocol, the images with partners, where any were skipped)."""
        logger.info("evaluating on %d %s images", len(split.images), name)
        loader, count = evaluation_loader(self._config, split, self._shard)
        metrics = self._evaluate(self._steps["complement"], variables, loader, count, name)
        pairs = pair(self._config, loader)
        metrics |= self._evaluate(
            self._steps["ablations"], variables, pairs, count, f"{name}, other backgrounds"
        )
        return metrics, pairs, list(loader.skipped.values())

    def _evaluate(
        self, step: EvalStep, variables: Any, loader: Loader | PairedLoader, count: int, name: str
    ) -> dict[str, float]:
        batches = tqdm(
            self._watch.batches(loader.batches(0, count), EVALUATE),
            total=count,
            desc=f"evaluating on {name}",
            unit="batch",
            leave=False,
            disable=None if distributed.is_first() else True,  # None: no bar in a log file
        )
        with self._watch.during(EVALUATE):
            return summarize(measure(step, variables, batches, self._mesh))


def _of_all_hosts(pairs: PairedLoader) -> PairedLoader:
    """Returns a loader of whole batches, not of this host's part of each."""
    images, companions = (replace(x, shard=(0, 1)) for x in (pairs.images, pairs.companions))
    return replace(pairs, images=images, companions=companions)
