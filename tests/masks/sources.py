"""Opens sources of masks as the command line does."""

import argparse
from pathlib import Path
from types import ModuleType

from corm_jax.masks.sources.source import Row, Source


def open_format(module: ModuleType, path: Path, *flags: str) -> Source:
    parser = argparse.ArgumentParser()
    module.add_arguments(parser)
    return module.open_source(path, parser.parse_args(flags))


def read_format(module: ModuleType, path: Path, *flags: str) -> dict[str, Row]:
    return {row.file_name: row for row in open_format(module, path, *flags).rows()}
