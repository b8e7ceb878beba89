"""Checkpoints: the latest two and the best, saved in the background, verified when restored."""

import logging
import math
import os
import re
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from corm_jax import buckets
from corm_jax.errors import UserError, one_line

logger = logging.getLogger(__name__)

T = TypeVar("T")

# What Orbax and tensorstore raise for files that are missing, cut short or altered, and for
# writes that the system refuses; neither library has an error class of its own for them.
STORAGE_ERRORS = (OSError, ValueError, KeyError, TypeError, RuntimeError)


def _is_damage(error: Exception) -> bool:
    """Returns whether an error while restoring is the checkpoint's fault."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return False  # the device's trouble: out of memory
    # Orbax raises a bare Exception for an array that is cut short.
    return isinstance(error, STORAGE_ERRORS) or type(error) is Exception


def _reason(error: Exception) -> str:
    return one_line(error.__cause__ or error, 200)


@jax.jit
def fingerprint(tree: Any) -> jax.Array:
    """Returns a uint32 checksum of all bits of a tree of 32-bit arrays, wherever they live."""

    def mix(x: jax.Array) -> jax.Array:  # murmur3's last step: each bit changes half of them
        x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
        x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
        return x ^ (x >> 16)

    def mixed_sum(leaf: jax.Array) -> jax.Array:
        bits = jax.lax.bitcast_convert_type(leaf, jnp.uint32).ravel()
        places = mix(jnp.arange(1, bits.size + 1, dtype=jnp.uint32))
        # A sum is the same in whatever order the devices add.
        return mix(bits ^ places).sum(dtype=jnp.uint32) + jnp.uint32(bits.size)

    sums = [mixed_sum(leaf) for leaf in jax.tree.leaves(tree)]
    # A loop, because XLA for CPUs takes minutes to fuse the chain of some hundred leaves.
    total, _ = jax.lax.scan(
        lambda total, leaf: (mix(total + leaf), None), jnp.zeros((), jnp.uint32), jnp.stack(sums)
    )
    return total


def complete_steps(directory: Path) -> list[int]:
    """Returns the steps whose checkpoints in `directory` were saved to the end."""

    def complete(path: Path) -> bool:
        # Elsewhere a checkpoint gets its name at the end; a directory in a bucket cannot be renamed
        # at once, and is complete when Orbax's marker is in it.
        return not buckets.is_remote(path) or ocp.utils.is_checkpoint_finalized(path)

    return [int(p.name) for p in directory.glob("*") if p.name.isdigit() and complete(p)]


class Checkpoints:
    """The checkpoints of one run.

    A save happens in the background and appears under its step's name only when it is complete;
    `wait` before relying on it.
    """

    def __init__(self, directory: Path, *, best: str) -> None:
        """Opens the checkpoints in `directory`, keeping the best by the metric `best`."""
        self._remote = buckets.is_remote(directory)
        self._directory = directory if self._remote else directory.absolute()
        self._errors = (*STORAGE_ERRORS, *(buckets.errors() if self._remote else ()))
        self._best = best
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        def value(metrics: dict[str, float]) -> float:
            return metrics.get(self._best, -math.inf)  # not measured where no image has a mask

        policy = checkpoint_managers.AnyPreservationPolicy(
            [
                checkpoint_managers.LatestN(2),
                checkpoint_managers.BestN(
                    get_metric_fn=value, n=1, keep_checkpoints_without_metrics=False
                ),
            ]
        )
        options = ocp.CheckpointManagerOptions(
            best_fn=value,  # without it metrics are not written, and the next start forgets them
            preservation_policy=policy,
            cleanup_tmp_directories=True,
        )
        return ocp.CheckpointManager(self._directory, options=options)

    def save(self, step: int, state: Any, run: dict[str, Any], metrics: dict | None) -> None:
        """Starts to save, after waiting for the save before.

        Args:
          step: number of steps taken.
          state: tree of arrays.
          run: what else the run needs to go on, as JSON: the position in the data and so on.
          metrics: of an evaluation at this step, None if there was none.

        Raises:
          UserError: if this save or the one before cannot be written.
        """
        run = {**run, "fingerprint": int(fingerprint(state))}
        arguments = ocp.args.Composite(
            state=ocp.args.StandardSave(state), run=ocp.args.JsonSave(run)
        )
        try:
            self._manager.wait_until_finished()
            self._manager.save(step, args=arguments, metrics=metrics, force=True)
        except self._errors as error:
            raise self._not_saved(error) from error

    def wait(self) -> None:
        """Waits until everything is saved.

        Raises:
          UserError: if it cannot be written.
        """
        try:
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        except self._errors as error:
            raise self._not_saved(error) from error

    def close(self) -> None:
        """Waits, then closes."""
        self.wait()
        self._manager.close()

    def restore(self, abstract: T) -> tuple[T, dict[str, Any]] | None:
        """Restores the newest checkpoint that is whole.

        Damaged ones that are newer are moved to `corrupt_checkpoints` beside the directory, with
        a warning.

        Args:
          abstract: tree of `jax.ShapeDtypeStruct` with shardings, of the state.

        Returns:
          (state, run) as they were saved, None if there is no checkpoint yet.

        Raises:
          UserError: if there are checkpoints but none is whole; they stay where they are.
        """
        damaged: dict[int, str] = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                restored = self._read(step, abstract)
            except Exception as error:
                if not _is_damage(error):
                    raise
                damaged[step] = _reason(error)
                continue
            if damaged:
                self._put_aside(damaged)
                logger.warning("falling back to checkpoint %s/%d", self._directory, step)
            return restored
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged.items())
            raise UserError(
                f"no checkpoint in {self._directory} can be read ({reasons}); remove its workdir "
                "or choose another --workdir to start over"
            )
        return None

    def restore_step(self, step: int, abstract: T) -> tuple[T, dict[str, Any]]:
        """Restores the checkpoint of one step; leaves everything where it is.

        Args:
          step: number of steps taken.
          abstract: as of `restore`.

        Raises:
          UserError: if there is none, or it is damaged.
        """
        if step not in self._manager.all_steps():
            raise UserError(f"{self._directory} holds no checkpoint of step {step}")
        try:
            return self._read(step, abstract)
        except Exception as error:
            if not _is_damage(error):
                raise
            reason = _reason(error)
            raise UserError(
                f"checkpoint {self._directory / str(step)} cannot be read ({reason})"
            ) from error

    def best_step(self) -> tuple[int, dict[str, float]] | None:
        """Returns the step that is best by the metric, with its metrics; None if none has any."""
        step = self._manager.best_step()
        return None if step is None else (step, self._manager.metrics(step))

    def _read(self, step: int, abstract: T) -> tuple[T, dict[str, Any]]:
        arguments = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), run=ocp.args.JsonRestore()
        )
        try:
            restored = self._manager.restore(step, args=arguments)
        except Exception as error:
            self._refuse_outage(step, error)
            raise
        if int(fingerprint(restored.state)) != restored.run["fingerprint"]:
            raise ValueError("its checksum does not match")
        return restored.state, restored.run

    def _put_aside(self, damaged: dict[int, str]) -> None:
        """Moves damaged checkpoints away: their steps will be saved again."""
        self._manager.close()
        for step, reason in damaged.items():
            path = self._directory / str(step)
            target = self._directory.parent / "corrupt_checkpoints" / str(step)
            logger.warning("checkpoint %s is damaged (%s); moved it to %s", path, reason, target)
            buckets.remove_tree(target)
            buckets.move_tree(path, target)
        self._manager = self._open()

    def _refuse_outage(self, step: int, error: Exception) -> None:
        """Raises a UserError if the bucket failed, which says nothing about the checkpoint."""
        device = isinstance(error, jax.errors.JaxRuntimeError)
        if self._remote and not device and buckets.is_outage(error):
            raise UserError(
                f"checkpoint {self._directory / str(step)} cannot be reached ({_reason(error)}); "
                "run the same command again when the bucket answers"
            ) from error

    def _not_saved(self, error: Exception) -> UserError:
        if self._remote:
            return UserError(
                f"cannot save a checkpoint in {self._directory}: {_reason(error)}; see that the "
                "bucket can be written and run the same command again to go on"
            )
        for unfinished in self._directory.glob("*.orbax-checkpoint-tmp*"):
            buckets.remove_tree(unfinished)
        code = re.search(r"os_error_code='(\d+)'", str(error))  # in tensorstore's messages
        reason = os.strerror(int(code[1])) if code else one_line(error, 200)
        kept = max(complete_steps(self._directory), default=None)
        good = "none is complete yet" if kept is None else f"the one of step {kept} is complete"
        return UserError(
            f"cannot save a checkpoint in {self._directory}: {reason}; free some space and run the "
            f"same command again to go on ({good})"
        )
