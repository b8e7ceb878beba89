"""Set-up of all tests: eight fake devices, strict dtype promotion, small data sets."""

import os

# Before jax starts: it reads them once.
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from fault_table import table
from launching_tpu import Cloud, make_checkout
from PIL import Image

jax.config.update("jax_numpy_dtype_promotion", "strict")
# Compiling takes most of the tests' time, and the programs are small. What a test starts as a
# process of its own is compiled as users' runs are.
jax.config.update("jax_disable_most_optimizations", True)

REPOSITORY = Path(__file__).resolve().parents[1]
SHARED_DATA = REPOSITORY.parent / "shared" / "data"


@pytest.fixture(scope="session")
def pets() -> Path:
    """The folder of real photographs; skips the test where it is absent (CI has it)."""
    path = SHARED_DATA / "pets"
    if not path.is_dir():
        pytest.skip(f"{path} is not here")
    return path


@pytest.fixture(scope="session")
def shapes_data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A TFDS data directory with spurious_shapes/tiny prepared in it."""
    from corm_jax.data.prepare import prepare_embedded

    path = tmp_path_factory.mktemp("tfds")
    prepare_embedded("spurious_shapes/tiny", path)
    return path


@pytest.fixture
def make_folder(tmp_path: Path) -> Callable[..., Path]:
    """Returns a function that writes a folder of random JPEG images with masks of a square."""

    def make(classes: int = 2, images: int = 10, size: tuple[int, int] = (40, 32)) -> Path:
        folder, rng = tmp_path / "folder", np.random.default_rng(0)
        height, width = size
        for number in range(classes):
            for kind in ("images", "masks"):
                (folder / kind / f"class{number}").mkdir(parents=True)
            for index in range(images):
                pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
                mask = np.zeros((height, width), np.uint8)
                mask[height // 4 : height // 2, width // 4 : width // 2] = 255
                Image.fromarray(pixels).save(folder / f"images/class{number}/{index}.jpg")
                Image.fromarray(mask).save(folder / f"masks/class{number}/{index}.png")
        return folder

    return make


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkout of the launchers, in git."""
    return make_checkout(tmp_path_factory.mktemp("checkout"))


@pytest.fixture
def cloud(tmp_path: Path, checkout: Path) -> Iterator[Cloud]:
    """A Google Cloud to launch into; what runs there ends with the test."""
    with Cloud(tmp_path / "machine", checkout) as cloud:
        yield cloud


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Prints the table of the faults that runs were put to."""
    reports = [
        report
        for outcome in ("passed", "failed")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    lines = table([pair for report in reports for pair in report.user_properties])
    if lines:
        terminalreporter.section("faults")
        for line in lines:
            terminalreporter.write_line(line)
