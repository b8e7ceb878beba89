"""Paths in buckets of Google Cloud Storage, for runs and data that are kept there.

A path gs://BUCKET/NAME is an `etils.epath.Path`, with the methods of a `pathlib.Path` as far as
this package uses them; gcsfs carries them out. Orbax writes checkpoints there through tensorstore,
and array_record reads records there itself. Orbax (0.12.8) has no such way to S3, whose paths
`corm_jax.files` refuses. Objects appear whole or not at all, but cannot grow: see `Mirror`.
"""

import contextlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from corm_jax.errors import UserError, one_line

logger = logging.getLogger(__name__)

PREFIX = "gs://"
CONNECT_SECONDS = 20.0  # at most, that a bucket takes to answer at the start
PUBLISH_SECONDS = 30.0  # between uploads of files that grow; one object takes one write a second

# What tensorstore, and gcsfs in an OSError, say where the bucket rather than what it holds is the
# trouble.
_REFUSALS = re.compile(
    r"\b(UNAVAILABLE|UNAUTHENTICATED|PERMISSION_DENIED|DEADLINE_EXCEEDED)\b|^Forbidden: "
)


def is_remote(path: Any) -> bool:
    """Returns whether a path, or its text, is in a bucket."""
    return str(path).startswith(PREFIX)


def open_path(text: str, what: str, *, write: bool) -> Path:
    """Returns a path in a bucket that answers.

    Call it before anything else in the process has used a gs:// path: etils chooses once how it
    reads them.

    Args:
      text: gs://BUCKET/NAME.
      what: names it, for the error.
      write: whether it is for a run, rather than for data that are only read.

    Raises:
      UserError: if the bucket cannot be used: says why, and what to do.
    """
    bucket, _, name = text.removeprefix(PREFIX).partition("/")
    if not bucket or not name.strip("/"):
        raise UserError(f"{what}={text} must name a place in a bucket: gs://BUCKET/NAME")
    if reason := _refusal(bucket, write):
        raise UserError(
            f"{what}={text}: {reason}; or mount the bucket (gcsfuse) and name the path that it has "
            "there"
        )
    _choose_libraries()
    from etils import epath

    return epath.Path(text)


def _choose_libraries() -> None:
    # TensorFlow's client, which etils takes by default where TensorFlow is installed, knows one
    # endpoint only, so that nothing could be tested with it.
    os.environ["EPATH_USE_TF"] = "false"
    from fsspec.config import conf

    # tensorstore and other processes write what a listing that is kept would not show.
    conf.setdefault("gcs", {})["use_listings_cache"] = False


def _refusal(bucket: str, write: bool) -> str:
    """Returns why a bucket cannot be used, "" if it can."""
    try:
        import gcsfs  # noqa: F401
        from google.api_core import exceptions
        from google.auth.exceptions import GoogleAuthError
        from google.cloud import storage
    except ImportError as error:
        return f"{error.name} is not installed; pip install -e '.[gcs]'"
    try:
        with contextlib.closing(storage.Client()) as client:
            impatient = {"timeout": CONNECT_SECONDS, "retry": None}
            if write:
                # As Orbax will, which looks whether the bucket has a hierarchical namespace.
                client.get_bucket(bucket, **impatient)
            next(iter(client.list_blobs(bucket, max_results=1, **impatient)), None)
    except exceptions.NotFound:
        return f"there is no bucket {bucket}; create it (gcloud storage buckets create)"
    except (exceptions.Forbidden, exceptions.Unauthorized) as error:
        needs = (
            "storage.buckets.get and to list, read, write and delete"
            if write
            else "to list and read"
        )
        return f"the credentials do not suffice ({error.message}); they need {needs} objects there"
    except GoogleAuthError as error:
        return (
            f"no credentials for the bucket ({one_line(error, 300)}); log in (gcloud auth "
            "application-default login) or set GOOGLE_APPLICATION_CREDENTIALS"
        )
    except (OSError, exceptions.GoogleAPICallError) as error:
        return f"the bucket cannot be reached ({one_line(error, 300)})"
    return ""


def errors() -> tuple[type[Exception], ...]:
    """Returns what gcsfs raises beside OSError for an object that it cannot read or write."""
    from aiohttp import ClientError
    from gcsfs.retry import HttpError
    from google.auth.exceptions import GoogleAuthError

    return (ClientError, GoogleAuthError, HttpError)


def is_outage(error: BaseException) -> bool:
    """Returns whether an error while a checkpoint is read is the bucket's fault."""
    kinds = (*errors(), ConnectionError, PermissionError, TimeoutError)
    while error is not None:
        if isinstance(error, kinds) or _REFUSALS.search(str(error)):
            return True
        error = error.__cause__
    return False


@contextlib.contextmanager
def _reporting(what: str, path: Path) -> Iterator[None]:
    """Turns what gcsfs raises into a UserError."""
    try:
        yield
    except (OSError, *errors()) as error:
        raise UserError(f"cannot {what} {path}: {one_line(error, 300)}") from error


def remove_tree(path: Path) -> None:
    """Removes a directory with all that it holds, in a bucket or not, if it is there."""
    if is_remote(path):
        with _reporting("remove", path), contextlib.suppress(FileNotFoundError):
            path.rmtree()
    else:
        shutil.rmtree(path, ignore_errors=True)


def move_tree(source: Path, target: Path) -> None:
    """Moves a directory, within a bucket or within a file system; not all at once in a bucket."""
    if is_remote(source):
        import fsspec

        with _reporting("move", source):
            fsspec.filesystem("gcs").mv(str(source), str(target), recursive=True)
    else:
        target.parent.mkdir(exist_ok=True)
        source.rename(target)


class Mirror:
    """A directory for files that grow, or that others write: on disk, whatever a run's is.

    Attributes:
      local: the directory to write into; where the run's is in a bucket, one on this disk, whose
        files `publish` copies.
    """

    def __init__(self, directory: Path) -> None:
        """Takes the directory that is meant, which need not exist."""
        self._directory, self._remote = directory, is_remote(directory)
        self.local = Path(tempfile.mkdtemp(prefix="corm_jax-")) if self._remote else directory
        self._published: dict[Path, tuple[int, int]] = {}
        self._last = time.monotonic()

    def publish(self, *, soon: bool = True) -> None:
        """Copies what has changed to the bucket, if there is one.

        Args:
          soon: whether to copy at once; else only every `PUBLISH_SECONDS`.

        Raises:
          UserError: if the bucket cannot be written.
        """
        if not self._remote or not (soon or time.monotonic() > self._last + PUBLISH_SECONDS):
            return
        self._last = time.monotonic()
        for path in sorted(path for path in self.local.rglob("*") if path.is_file()):
            status = path.stat()
            version = (status.st_mtime_ns, status.st_size)
            if self._published.get(path) != version:
                upload(path, self._directory / path.relative_to(self.local))
                self._published[path] = version

    def close(self) -> None:
        """Publishes, and removes what is on disk beside it.

        A bucket that cannot be written is a warning: the run ends, perhaps by an error of its own.
        """
        try:
            self.publish()
        except UserError as error:
            logger.warning("%s", error)
        if self._remote:
            shutil.rmtree(self.local, ignore_errors=True)


def upload(path: Path, target: Path) -> None:
    """Copies a file of this disk to an object, which is replaced as a whole.

    Raises:
      UserError: if the bucket cannot be written.
    """
    with _reporting("write", target):
        target.write_bytes(path.read_bytes())
