"""The training loop: wiring, logging, evaluation, checkpoints."""

import contextlib
import logging
import math
import time
from pathlib import Path
from typing import Any

import jax
from ml_collections import ConfigDict

from corm_jax import distributed, init, report
from corm_jax.checkpoint import Checkpoints
from corm_jax.config import check_config, refuse_other_config
from corm_jax.errors import UserError
from corm_jax.files import read_json, write_json
from corm_jax.meter import Meter
from corm_jax.models.cost import multiply_adds
from corm_jax.preemption import Preempted, Preemption
from corm_jax.progress import History, NoHistory, ProgressLine, SilentTerms
from corm_jax.set_up import Setup, set_up
from corm_jax.sharding import put_batch
from corm_jax.state import TrainState, abstract_state, create_state
from corm_jax.steps import make_train_step
from corm_jax.watch import COMPILE, SAVE, STEP

logger = logging.getLogger(__name__)

SHOWN = ("clean", "core", "spurious", "rcs")  # of an evaluation in the course of training


def train(
    config: ConfigDict, workdir: Path, preemption: Preemption | None = None
) -> dict[str, Any]:
    """Trains, or goes on with what the workdir holds, evaluates, and writes the results.

    Args:
      config: as `corm_jax.config.base_config` describes it.
      workdir: receives config.json, model.json (what the model is), checkpoints/, history.jsonl,
        tensorboard/, heartbeat/, curves.png, examples.png and at last results.json: where that is,
        the run is finished and its content is returned as it is. It may be in a bucket:
        `corm_jax.files.run_path`.
      preemption: tells when to save and end; by default nothing does.

    Returns:
      the content of results.json.

    Raises:
      UserError: for what the user can put right; training stops at a loss that is not finite.
      Preempted: when `preemption` says so, with the steps taken so far saved.
    """
    preemption = preemption or Preemption()
    refuse_other_config(config, workdir)
    finished = workdir / "results.json"
    if finished.exists():
        logger.info("%s is finished; remove it to train again", workdir)
        return read_json(finished)
    check_config(config)
    source = init.load(config, workdir)
    setup = set_up(config, workdir, source and source.description.statistics)
    abstract = abstract_state(config, setup.model, setup.mesh)
    names = setup.dataset.class_names
    trained = source and init.fit(source, config, setup.model, abstract, names)
    if distributed.is_first():
        write_json(workdir / "config.json", config.to_dict())
        write_json(workdir / "model.json", setup.describe().to_json())
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
    with (
        contextlib.closing(record) as history,
        contextlib.closing(setup.profile),
        setup.watch.running(),
    ):
        with preemption.deferred():
            try:
                if start < config.train.steps:
                    state, run = _loop(
                        setup, abstract, state, start, run, checkpoints, history, preemption
                    )
            except (UserError, Preempted):
                checkpoints.wait()  # for a save in the background, which the exit would cut off
                raise
            with setup.watch.during(SAVE):
                checkpoints.close()
        return _finish(setup, workdir, state, run, history)


def _finish(
    setup: Setup,
    workdir: Path,
    state: TrainState,
    run: dict[str, Any],
    history: History | NoHistory,
) -> dict[str, Any]:
    """Evaluates what is trained, and writes and returns the results."""
    config = setup.config
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
    if distributed.is_first():
        report.draw_curves(workdir / "curves.png", history.records, final.metrics, config)
        report.draw_examples(
            workdir / "examples.png", final.examples, setup.dataset.class_names, config
        )
        write_json(workdir / "results.json", results)
    return results


def _loop(
    setup: Setup,
    abstract: TrainState,
    state: TrainState,
    start: int,
    run: dict[str, Any],
    checkpoints: Checkpoints,
    history: History | NoHistory,
    preemption: Preemption,
) -> tuple[TrainState, dict[str, Any]]:
    """Takes the steps that are left; returns the last state and the run's record.

    The record, saved with every checkpoint, is {"position": training examples taken, "seconds":
    spent on steps and their compilation, "skipped": index of an undecodable image -> where it is}.
    """
    config, steps, watch = setup.config, setup.config.train.steps, setup.watch
    loader, progress = setup.training, ProgressLine(steps, shown=distributed.is_first())
    loader.skipped.update({int(index): where for index, where in run["skipped"].items()})
    loaded = (put_batch(batch, setup.mesh) for batch in loader.batches(start, steps))
    batches = watch.batches(loaded, STEP)
    batch = next(batches)
    progress.note("compiling the training step (up to minutes for a large model)")
    since = time.perf_counter()
    with watch.during(COMPILE):
        traced = [
            step.trace(state, batch)
            for step in make_train_step(config, setup.model, setup.mesh, abstract)
        ]
        train_step, diagnose = (program.lower().compile() for program in traced)
    spent = run["seconds"] + time.perf_counter() - since
    flops = 2.0 * multiply_adds(traced[0].jaxpr.jaxpr)
    meter = Meter(config.train.batch_size, flops, setup.mesh.devices)
    pending: list[tuple[int, dict[str, jax.Array]]] = []  # metrics not yet looked at
    silent = SilentTerms()
    meter.restart()
    for step in range(start + 1, steps + 1):
        log_now = step % config.train.log_every == 0 or step == steps
        setup.profile.before(step, state)
        diagnosis = diagnose(state, batch) if log_now else {}
        state, metrics = train_step(state, batch)
        pending.append((step, metrics))
        if len(pending) > 1:
            # One step runs while the next one's batch is loaded; further ahead, batches would
            # fill the device's memory and waiting for data would not show.
            jax.block_until_ready(pending[-2])
        before = time.perf_counter()
        batch = next(batches, None)
        starved = metrics["loss"].is_ready()  # the device was done first
        meter.step(waited=time.perf_counter() - before if starved else 0.0)
        evaluate_now = step % config.eval.every == 0 and step < steps
        preempted = preemption.reached(step)
        save_now = step % config.checkpoint.every == 0 or step == steps or preempted
        if not (log_now or evaluate_now or save_now):
            continue
        scalars = _fetch_finite(pending)
        measured = meter.read()
        spent += measured.seconds
        run = {
            "position": step * config.train.batch_size,
            "seconds": spent,
            "skipped": distributed.merge({str(i): where for i, where in loader.skipped.items()}),
        }
        if log_now or evaluate_now:
            progress.show(step, scalars["loss"], measured)
            scalars |= {k: float(v) for k, v in diagnosis.items()}
            for label in silent.update(scalars):
                progress.note(f"warning: config.terms.{label} {SilentTerms.MEANING}")
            scalars |= measured.scalars
            watch.logged(step, scalars)
            history.write(step, {f"train/{name}": value for name, value in scalars.items()})
        validation = None
        if evaluate_now:
            progress.finish()
            validation = setup.evaluation.on_subset(state.eval_variables())
            history.write(step, {f"validation/{name}": v for name, v in validation.items()})
            progress.note(
                f"step {step}: on {validation['images']:.0f} validation images: "
                + ", ".join(f"{k} {validation[k]:.3f}" for k in SHOWN if k in validation)
            )
        if save_now:
            with watch.during(SAVE):
                history.publish()
                checkpoints.save(step, state, run, validation)
        if preempted:
            progress.finish()
            raise Preempted(f"stopped by SIGTERM; the same command goes on from step {step}")
        meter.restart()
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
