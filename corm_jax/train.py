"""The training loop: wiring, logging, evaluation, checkpoints."""

import contextlib
import dataclasses
import logging
import math
import time
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
from jax.sharding import Mesh
from ml_collections import ConfigDict

from corm_jax import distributed, init, report
from corm_jax.checkpoint import Checkpoints
from corm_jax.config import check_config, refuse_other_config
from corm_jax.data.dataset import Dataset, open_dataset, training_loader
from corm_jax.data.pipeline import Loader
from corm_jax.description import Description
from corm_jax.errors import UserError
from corm_jax.files import read_json, write_json
from corm_jax.models import create_model
from corm_jax.models.normalizer import Statistics
from corm_jax.progress import History, NoHistory, ProgressLine, SilentTerms
from corm_jax.run_evaluation import RunEvaluation
from corm_jax.sharding import create_mesh, host_shard, put_batch
from corm_jax.state import TrainState, abstract_state, create_state
from corm_jax.steps import make_train_step

logger = logging.getLogger(__name__)

SHOWN = ("clean", "core", "spurious", "rcs")  # of an evaluation in the course of training


@dataclasses.dataclass(frozen=True)
class Setup:
    """What a run is made of."""

    config: ConfigDict
    dataset: Dataset
    mesh: Mesh
    model: nn.Module
    training: Loader
    evaluation: RunEvaluation


def set_up(config: ConfigDict, statistics: Statistics | None) -> Setup:
    """Opens the data; writes nothing but prepared embedded data.

    Args:
      config: checked.
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
    return Setup(
        config=config,
        dataset=dataset,
        mesh=mesh,
        model=model,
        training=training_loader(config, dataset.train, shard),
        evaluation=RunEvaluation(config, dataset, model, mesh, shard),
    )


def train(config: ConfigDict, workdir: Path) -> dict[str, Any]:
    """Trains, or goes on with what the workdir holds, evaluates, and writes the results.

    Args:
      config: as `corm_jax.config.base_config` describes it.
      workdir: receives config.json, model.json (what the model is), checkpoints/, history.jsonl,
        tensorboard/, curves.png, examples.png and at last results.json: where that is, the run is
        finished and its content is returned as it is.

    Returns:
      the content of results.json.

    Raises:
      UserError: for what the user can put right; training stops at a loss that is not finite.
    """
    refuse_other_config(config, workdir)
    finished = workdir / "results.json"
    if finished.exists():
        logger.info("%s is finished; remove it to train again", workdir)
        return read_json(finished)
    check_config(config)
    source = init.load(config, workdir)
    setup = set_up(config, source and source.description.statistics)
    abstract = abstract_state(config, setup.model, setup.mesh)
    names = setup.dataset.class_names
    trained = source and init.fit(source, config, setup.model, abstract, names)
    if distributed.is_first():
        write_json(workdir / "config.json", config.to_dict())
        write_json(workdir / "model.json", _describe(setup).to_json())
    checkpoints = Checkpoints(workdir / "checkpoints", best=config.checkpoint.best)
    restored = checkpoints.restore(abstract)
    if restored is None:
        state = create_state(config, setup.model, abstract, trained)
        run = {"position": 0, "seconds": 0.0, "skipped": {}}
    else:
        state, run = restored
    del source, trained  # the host's memory of them
    start = run["position"] // config.train.batch_size
    if start:
        logger.info("going on from the checkpoint of step %d", start)
    record = History(workdir, start=start) if distributed.is_first() else NoHistory()
    with contextlib.closing(record) as history:
        try:
            if start < config.train.steps:
                state, run = _loop(setup, abstract, state, start, run, checkpoints, history)
        except UserError:
            checkpoints.wait()  # for a save in the background, which the exit would cut off
            raise
        checkpoints.close()
    final = setup.evaluation.final(state.eval_variables())
    results = report.results(
        config,
        metrics=final.metrics,
        selection=final.selection,
        extra=final.extra,
        seconds=run["seconds"],
        skipped=[*run["skipped"].values(), *final.skipped],
        counts=setup.dataset.counts,
    )
    if not distributed.is_first():
        return results
    report.draw_curves(workdir / "curves.png", history.records, final.metrics, config)
    report.draw_examples(
        workdir / "examples.png", final.examples, setup.dataset.class_names, config
    )
    write_json(finished, results)
    return results


def _describe(setup: Setup) -> Description:
    data = setup.config.data
    return Description(
        model=setup.config.model.name,
        num_classes=setup.model.num_classes,
        class_names=setup.dataset.class_names,
        statistics=setup.model.statistics,
        image_size=data.image_size,
        center_crop_share=data.center_crop_share,
        interpolation="bilinear",
        head_bias=setup.config.model.head_bias,
        global_pool=setup.config.model.global_pool,
    )


def _loop(
    setup: Setup,
    abstract: TrainState,
    state: TrainState,
    start: int,
    run: dict[str, Any],
    checkpoints: Checkpoints,
    history: History | NoHistory,
) -> tuple[TrainState, dict[str, Any]]:
    """Takes the steps that are left; returns the last state and the run's record.

    The record, saved with every checkpoint, is {"position": training examples taken, "seconds":
    spent on steps and their compilation, "skipped": index of an undecodable image -> where it is}.
    """
    config, steps = setup.config, setup.config.train.steps
    loader, progress = setup.training, ProgressLine(steps, shown=distributed.is_first())
    loader.skipped.update({int(index): where for index, where in run["skipped"].items()})
    batches = (put_batch(batch, setup.mesh) for batch in loader.batches(start, steps))
    batch = next(batches)
    progress.note("compiling the training step (up to minutes for a large model)")
    since = time.perf_counter()
    train_step, diagnose = (
        step.lower(state, batch).compile()
        for step in make_train_step(config, setup.model, setup.mesh, abstract)
    )
    spent = run["seconds"] + time.perf_counter() - since
    pending: list[tuple[int, dict[str, jax.Array]]] = []  # metrics not yet looked at
    silent = SilentTerms()
    waited, since, first = 0.0, time.perf_counter(), start
    for step in range(start + 1, steps + 1):
        log_now = step % config.train.log_every == 0 or step == steps
        diagnosis = diagnose(state, batch) if log_now else {}
        state, metrics = train_step(state, batch)
        pending.append((step, metrics))
        if len(pending) > 1:
            # One step runs while the next one's batch is loaded; further ahead, batches would
            # fill the device's memory and waiting for data would not show.
            jax.block_until_ready(pending[-2])
        before = time.perf_counter()
        batch = next(batches, None)
        if metrics["loss"].is_ready():  # the device was done first
            waited += time.perf_counter() - before
        evaluate_now = step % config.eval.every == 0 and step < steps
        save_now = step % config.checkpoint.every == 0 or step == steps
        if not (log_now or evaluate_now or save_now):
            continue
        scalars = _fetch_finite(pending)
        seconds = time.perf_counter() - since
        spent += seconds
        run = {
            "position": step * config.train.batch_size,
            "seconds": spent,
            "skipped": distributed.merge({str(i): where for i, where in loader.skipped.items()}),
        }
        if log_now or evaluate_now:
            taken = step - first
            speed = taken * config.train.batch_size / seconds
            share = min(1.0, waited / seconds)
            progress.show(step, scalars["loss"], speed, share, seconds / taken)
            scalars |= {k: float(v) for k, v in diagnosis.items()}
            for label in silent.update(scalars):
                progress.note(f"warning: config.terms.{label} {SilentTerms.MEANING}")
            scalars |= {"images_per_second": speed, "data_wait": share}
            history.write(step, {f"train/{name}": value for name, value in scalars.items()})
        measured = None
        if evaluate_now:
            progress.finish()
            measured = setup.evaluation.on_subset(state.eval_variables())
            history.write(step, {f"validation/{name}": v for name, v in measured.items()})
            progress.note(
                f"step {step}: on {measured['images']:.0f} validation images: "
                + ", ".join(f"{k} {measured[k]:.3f}" for k in SHOWN if k in measured)
            )
        if save_now:
            checkpoints.save(step, state, run, measured)
        waited, since, first = 0.0, time.perf_counter(), step
    progress.finish()
    return state, run


def _fetch_finite(pending: list[tuple[int, dict[str, jax.Array]]]) -> dict[str, float]:
    """Fetches and clears the pending metrics; returns the last step's.

    Raises:
      UserError: at the first step whose loss or parameters are not finite; nothing of it is saved.
    """
    scalars: dict[str, float] = {}
    for step, metrics in jax.device_get(pending):
        scalars = {name: float(value) for name, value in metrics.items()}
        for name in ("loss", "gradient_norm", "parameter_norm"):
            if not math.isfinite(scalars[name]):
                raise UserError(
                    f"{name} is {scalars[name]} at step {step}; training stopped, the checkpoints "
                    "from before it are kept. Lower config.optimizer.learning_rate or a term's "
                    "weight, or set config.optimizer.clip_norm, in another --workdir"
                )
    pending.clear()
    return scalars
