"""Count what workers answered about features: core, spurious, and how far they agree."""

import argparse
from pathlib import Path

from corm_jax.errors import UserError
from corm_jax.masks.annotations import (
    ANSWERS_PER_PAIR,
    MAJORITY,
    Summary,
    read_annotations,
    summarize,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("csv", type=Path, metavar="CSV", help="the workers' answers")
    add_rule_arguments(parser)


def add_rule_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say how answers decide."""
    parser.add_argument(
        "--votes",
        type=int,
        default=MAJORITY,
        help=f"answers against the main object that make a feature spurious (default: {MAJORITY})",
    )
    parser.add_argument(
        "--answers_per_pair",
        type=int,
        default=ANSWERS_PER_PAIR,
        help=f"answers that each feature of a class must have (default: {ANSWERS_PER_PAIR})",
    )


def check_rule_arguments(arguments: argparse.Namespace) -> None:
    """Raises UserError if no number of answers can satisfy the rule."""
    if not 1 <= arguments.votes <= arguments.answers_per_pair:
        raise UserError(
            f"--votes={arguments.votes} must be from 1 to --answers_per_pair="
            f"{arguments.answers_per_pair}"
        )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command."""
    check_rule_arguments(arguments)
    annotations = read_annotations(arguments.csv, arguments.answers_per_pair)
    print(format_summary(summarize(annotations, arguments.votes)))


def format_summary(summary: Summary) -> str:
    """Returns a summary as lines of text."""
    rows = {
        "(class, feature) pairs": summary.pairs,
        "classes": summary.classes,
        "core pairs": summary.core,
        "spurious pairs": summary.spurious,
        "classes with a spurious feature": summary.classes_with_spurious,
        "classes with no core feature": len(summary.classes_without_core),
        "unanimous pairs": summary.unanimous,
        "pairs decided by one vote": summary.decided_by_one,
    }
    lines = [f"{name:<34}{count:>8,}" for name, count in rows.items()]
    if summary.classes_without_core:
        indices = " ".join(map(str, summary.classes_without_core))
        lines.append(f"no core feature in the classes {indices}")
    return "\n".join(lines)
