"""What needs no tensorflow imports none: it takes seconds and half a gigabyte."""

import subprocess
import sys

WITHOUT = (
    "corm_jax.convert",
    "corm_jax.corruptions",
    "corm_jax.errors",
    "corm_jax.evaluation_files",
    "corm_jax.example_file",
    "corm_jax.protocols",
    "corm_jax.files",
    "corm_jax.html_report.document",
    "corm_jax.losses.presets",
    "corm_jax.losses.terms",
    "corm_jax.masks.import_command",
    "corm_jax.masks.records",
    "corm_jax.masks.resample",
    "corm_jax.masks.show",
    "corm_jax.masks.stats",
    "corm_jax.masks.verify",
    "corm_jax.masks.writer",
    "corm_jax.metrics",
    "corm_jax.models",
    "corm_jax.models.cost",
    "corm_jax.protocols.views",
    "corm_jax.sharding",
    "corm_jax.state",
    "corm_jax.steps",
)


def imported(code: str) -> set[str]:
    """Returns the names of the modules that are imported after a program ran."""
    code += "; import sys; print(*sys.modules, sep='\\n')"
    process = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return set(process.stdout.split())


def test_models_losses_steps_metrics_and_evaluation_import_no_tensorflow() -> None:
    modules = imported("import " + ", ".join(WITHOUT))
    assert modules >= set(WITHOUT)
    assert not {m for m in modules if m.partition(".")[0] in ("tensorflow", "tensorflow_datasets")}


def test_data_leaves_accelerators_to_jax() -> None:
    code = (
        "import corm_jax.data.dataset, tensorflow as tf; "
        "assert tf.config.get_visible_devices('GPU') == []; "
        "assert tf.config.get_visible_devices('TPU') == []"
    )
    assert "tensorflow" in imported(code)


def test_buckets_cost_a_local_run_nothing() -> None:
    code = (
        "import tempfile, pathlib, jax.numpy as jnp; "
        "import corm_jax.main, corm_jax.train, corm_jax.evaluate, corm_jax.report; "
        "from corm_jax.checkpoint import Checkpoints; "
        "from corm_jax.files import run_path, write_json; "
        "path = run_path(tempfile.mkdtemp(), '--workdir'); write_json(path / 'a.json', {}); "
        "checkpoints = Checkpoints(path / 'checkpoints', best='core'); "
        "checkpoints.save(1, {'a': jnp.zeros(3)}, {}, None); checkpoints.close()"
    )
    modules = imported(code)
    assert "orbax.checkpoint" in modules
    assert not modules & {"gcsfs", "s3fs", "aiohttp", "google.auth", "google.cloud.storage"}
