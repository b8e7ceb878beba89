"""Archives read as directories."""

import contextlib
import functools
import gzip
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from corm_jax.errors import UserError
from corm_jax.files import reporting

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")
# What the libraries raise for damaged archives, found by feeding them such.
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    EOFError,
    UnicodeDecodeError,
)


@dataclass(frozen=True)
class _Member:
    """Something in an archive; `kind` is "file", "folder", or what it is instead."""

    name: str
    kind: str
    open: Callable[[], IO[bytes]]


@contextlib.contextmanager
def opened(path: Path, working: Path) -> Iterator[Path]:
    """Yields the directory that `path` is, or that it holds if it is an archive.

    An archive is checked as a whole before anything is written, then unpacked, and what was
    unpacked is removed when the block ends. UserErrors of the block that name unpacked files are
    made to name them as part of the archive.

    Args:
      path: a .zip, .tar, .tar.gz or .tgz archive is unpacked; any other path is yielded as it is.
      working: an existing directory; the archive is unpacked in one of its own name there.

    Yields:
      The archive's only folder at the top if there is nothing else beside it, else all of it.

    Raises:
      UserError: if the archive is damaged, or a member would be written outside the directory, is a
        link or device, or stands twice; names the archive, the member and its position.
    """
    if not path.name.lower().endswith(SUFFIXES):
        yield path
        return
    with _reading(path):
        bar = tqdm(_checked(path), desc=f"checking {path.name}", unit="file", **_BAR)
        count = sum(1 for _ in bar)
    directory = working / path.name
    with reporting(directory):
        directory.mkdir()
    try:
        _unpack(path, directory, count)
        content = _content(directory)
        try:
            yield content
        except UserError as error:
            raise UserError(str(error).replace(str(content), str(path))) from error
    finally:
        shutil.rmtree(directory, ignore_errors=True)


_BAR = {"delay": 2, "leave": False, "disable": None}


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Turns what goes wrong while the archive `path` is read into a UserError."""
    try:
        yield
    except DAMAGE as error:
        raise UserError(f"{path} is damaged or truncated ({error}); get it again") from error
    except NotImplementedError as error:  # such as Deflate64, which Windows uses for large files
        raise UserError(
            f"{path} cannot be unpacked ({error}); unpack it, or pack it anew"
        ) from error
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error


def _unpack(path: Path, directory: Path, count: int) -> None:
    """Writes the members as new files: no links, owners or permissions come from the archive."""
    members = tqdm(_checked(path), total=count, desc=f"unpacking {path.name}", unit="file", **_BAR)
    with _reading(path):
        for relative, member in members:
            target = directory / relative
            with reporting(target):
                if member.kind == "folder":
                    target.mkdir(parents=True, exist_ok=True)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                with member.open() as source, target.open("xb") as file:
                    shutil.copyfileobj(source, file)


def _content(directory: Path) -> Path:
    # macOS adds __MACOSX, which holds nothing of the user's.
    tops = [top for top in directory.iterdir() if top.name != "__MACOSX"]
    return tops[0] if len(tops) == 1 and tops[0].is_dir() else directory


def _checked(path: Path) -> Iterator[tuple[PurePosixPath, _Member]]:
    """Yields (path inside the archive, member), or raises UserError at the first bad member."""
    files: set[str] = set()
    folders: set[str] = {"."}
    members = _zip_members if path.name.lower().endswith(".zip") else _tar_members
    for position, member in enumerate(members(path), start=1):
        where = f"{path}: member {position}, {member.name!r},"
        relative = PurePosixPath(member.name)
        if relative.is_absolute() or ".." in relative.parts or "\0" in member.name:
            raise UserError(f"{where} would leave the folder that it is unpacked in")
        if member.kind not in ("file", "folder"):
            raise UserError(f"{where} is a {member.kind}; only files and folders are unpacked")
        name = str(relative)
        ancestors = {str(parent) for parent in relative.parents} - folders
        taken = name in files or (member.kind == "file" and name in folders) or ancestors & files
        if taken:
            raise UserError(f"{where} stands in the place of another member")
        folders |= ancestors
        (files if member.kind == "file" else folders).add(name)
        yield relative, member


def _zip_members(path: Path) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = "folder" if info.is_dir() else "file"
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                kind = "link or device"
            if info.flag_bits & 1:
                kind = "file with a password"
            yield _Member(info.filename, kind, functools.partial(archive.open, info))


def _tar_members(path: Path) -> Iterator[_Member]:
    mode = "r:" if path.name.lower().endswith(".tar") else "r:gz"
    with tarfile.open(path, mode) as archive:
        while (info := archive.next()) is not None:
            kind = "file" if info.isreg() else "folder" if info.isdir() else "link or device"
            yield _Member(info.name, kind, functools.partial(archive.extractfile, info))
            archive.members.clear()  # tarfile keeps every header in memory
        # tarfile takes a header that it cannot read for the end: the end is a block of zeros.
        archive.fileobj.seek(archive.offset)
        if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("its end is missing")
        while archive.fileobj.read(1 << 20):
            pass  # gzip compares its checksum at the end
