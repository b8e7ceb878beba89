"""Writing files whole or not at all."""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corm_jax import buckets
from corm_jax.errors import UserError


@contextlib.contextmanager
def reporting(path: Path) -> Iterator[None]:
    """Turns what the operating system refuses while `path` is written into a UserError."""
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {path}: {error.strerror or error}") from error


def local_path(text: str, what: str) -> Path:
    """Returns the path that a user gave.

    Args:
      text: of the path; ~ stands for the user's home.
      what: names it, for the error.

    Raises:
      UserError: for gs://, s3:// and the like, which would become a directory of that name here.
    """
    if "://" in text:
        raise UserError(
            f"{what}={text} is in an object store, which is not written or read directly; mount "
            "the bucket (gcsfuse, mountpoint-s3) and name the path that it has there"
        )
    return Path(text).expanduser()


def run_path(text: str, what: str) -> Path:
    """Returns the path of a run, which may be in a bucket.

    Args:
      text: of the path: of a directory or file here, or gs://BUCKET/NAME.
      what: names it, for the error.

    Raises:
      UserError: for a bucket that cannot be used (see `corm_jax.buckets`), and for s3:// and the
        like: Orbax writes checkpoints to no other object store.
    """
    if buckets.is_remote(text):
        return buckets.open_path(text, what, write=True)
    return local_path(text, what)


def data_path(text: str, what: str) -> Path:
    """Returns the path of data, which may be in a bucket; arguments and errors as of `run_path`."""
    if buckets.is_remote(text):
        return buckets.open_path(text, what, write=False)
    return local_path(text, what)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside `path`, renamed to `path` when the block succeeds.

    Where `path` is in a bucket, the temporary one is on this disk, and copied.

    Raises:
      UserError: if the write is refused (a full disk, no permission).
    """
    if buckets.is_remote(path):
        with reporting(path), tempfile.TemporaryDirectory(prefix="corm_jax-") as directory:
            yield (temporary := Path(directory) / path.name)
            buckets.upload(temporary, path)
        return
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            temporary.chmod(0o644)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yields a temporary directory beside `path`, renamed to `path` when the block succeeds.

    The block's own errors pass unchanged: it may read other files as well.

    Raises:
      UserError: if `path` exists already, or cannot be made.
    """
    if path.exists():
        raise UserError(f"{path} exists already; remove it or choose another name")
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        yield temporary
        with reporting(path):
            temporary.chmod(0o755)
            temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Holds an exclusive lock on the file `path`; other processes of this machine wait for it.

    Raises:
      UserError: if the file cannot be made.
    """
    with reporting(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w")
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)  # closing the file, or the process's end, releases it
        yield


def write_json(path: Path, content: Any) -> None:
    """Writes `content` as indented JSON, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    Raises:
      UserError: if it cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); restore it or write it again"
        ) from error
