"""Ask where the features of classes lie, on a local web page, when nobody has annotated them yet.

Run it on the workdir of `build`, which stops and says so when the features are selected. Open the
link that it prints. Each answer is saved at once; the same command goes on where you stopped. On a
machine that you are logged in to: name a --port, then ssh -L PORT:127.0.0.1:PORT HOST.
"""

import argparse
from pathlib import Path

from corm_jax.masks.annotate import answers
from corm_jax.masks.annotate.pairs import EXAMPLE, Pairs, read_pairs


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this command's arguments."""
    parser.add_argument("workdir", type=Path, metavar="WORKDIR", help="of the build")
    parser.add_argument("--port", type=int, default=0, help="(default: one that is free)")
    parser.add_argument(
        "--answers",
        type=Path,
        metavar="DIR",
        help="where answers are kept, a file for each worker (default: WORKDIR/answers)",
    )
    parser.add_argument(
        "--worker", default="worker-1", metavar="NAME", help="who answers (default: worker-1)"
    )
    parser.add_argument(
        "--class_names",
        type=Path,
        metavar="FILE",
        help=f"what the names of classes mean, in lines like {EXAMPLE!r} (ImageNet's words.txt)",
    )
    parser.add_argument(
        "--export",
        type=Path,
        metavar="CSV",
        help="write the answers of all workers in Salient ImageNet's format, and stop",
    )


def run(arguments: argparse.Namespace) -> None:
    """Runs the command.

    Raises:
      UserError: for what the user can put right.
    """
    workdir = arguments.workdir
    answers.check_worker(arguments.worker)
    pairs = read_pairs(workdir, arguments.class_names)
    directory = arguments.answers or workdir / "answers"
    if arguments.export:
        export(pairs, directory, arguments.export)
        return
    path = directory / f"{arguments.worker}{answers.SUFFIX}"
    selected = answers.fingerprint(pairs.features, pairs.class_names)
    file = answers.AnswerFile(path, arguments.worker, selected)
    try:
        serve(arguments, pairs, directory, file)
    finally:
        file.close()


def export(pairs: Pairs, directory: Path, path: Path) -> None:
    """Writes the CSV of all answers and says what is in it."""
    counts = answers.export(directory, path, pairs.features, pairs.class_names)
    for worker, count in counts.items():
        print(f"{worker}: {count} of {len(pairs)} pairs")
    print(f"answers: {path}; build with them: {build_flags(path, len(counts))}")


def build_flags(csv: Path, workers: int) -> str:
    """Returns the flags of a build that reads the answers of some workers, and goes by most."""
    return (
        f"--config.annotations.path={csv} --config.annotations.answers_per_pair={workers} "
        f"--config.annotations.votes={workers // 2 + 1}"
    )


def serve(
    arguments: argparse.Namespace, pairs: Pairs, directory: Path, file: answers.AnswerFile
) -> None:
    """Serves the page until the user stops it."""
    from corm_jax.masks.annotate import server, studio  # they import jax and tensorflow
    from corm_jax.masks.annotate.pictures import Pictures

    csv = directory.with_suffix(".csv")

    def finish() -> dict[str, str]:
        counts = answers.export(directory, csv, pairs.features, pairs.class_names)
        return {"csv": str(csv), "flags": build_flags(csv, len(counts))}

    pictures = Pictures(studio.open_studio(arguments.workdir, pairs).makers())
    try:
        application = server.Application(pairs, pictures, file, finish)
        listening, link = server.bind(application, arguments.port)
        print(f"{len(file.answers)} of {len(pairs)} pairs are answered: {file.path}")
        print(f"open {link}\nstop with Ctrl-C", flush=True)
        listening.serve_forever()
        print(f"\n{len(file.answers)} of {len(pairs)} pairs are answered: {file.path}")
    finally:
        pictures.close()
