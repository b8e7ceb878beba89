"""Masks of the format salient_imagenet."""

import argparse
from pathlib import Path

from corm_jax.masks.sources.source import Source


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this format's arguments."""


def open_source(path: Path, arguments: argparse.Namespace) -> Source:
    """Opens the masks at `path`."""
    raise NotImplementedError
