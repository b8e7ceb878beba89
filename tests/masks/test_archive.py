"""Archives are unpacked whole, or refused before anything is written."""

import contextlib
import io
import random
import stat
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from corm_jax.errors import UserError
from corm_jax.masks.archive import opened

FILES = {"top/a.txt": b"one", "top/below/b.txt": b"two", "readme": b"three"}
KINDS = (".zip", ".tar", ".tar.gz", ".tgz", ".ZIP")


def write(path: Path, files: list[tuple[str, bytes]]) -> Path:
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in files:
                archive.writestr(name, content)
    else:
        with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as archive:
            for name, content in files:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
    return path


def tree(directory: Path) -> dict[str, bytes]:
    return {
        file.relative_to(directory).as_posix(): file.read_bytes()
        for file in directory.rglob("*")
        if file.is_file()
    }


@pytest.fixture
def working(tmp_path: Path) -> Path:
    path = tmp_path / "working"
    path.mkdir()
    return path


@pytest.mark.parametrize("suffix", KINDS)
def test_an_archive_is_unpacked_and_removed_afterwards(
    tmp_path: Path, working: Path, suffix: str
) -> None:
    path = write(tmp_path / f"masks{suffix}", list(FILES.items()))
    with opened(path, working) as directory:
        assert tree(directory) == FILES
        assert directory.is_relative_to(working)
    assert list(working.iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_the_only_folder_at_the_top_is_the_content(
    tmp_path: Path, working: Path, suffix: str
) -> None:
    files = [("./top/a", b"1"), ("top/b/c", b"2"), ("__MACOSX/top/._a", b"3")]
    with opened(write(tmp_path / f"m{suffix}", files), working) as directory:
        assert tree(directory) == {"a": b"1", "b/c": b"2"}


def test_a_directory_or_another_file_is_yielded_as_it_is(tmp_path: Path, working: Path) -> None:
    file = tmp_path / "boxes.csv"
    for path in (tmp_path, file):
        with opened(path, working) as content:
            assert content == path


@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_folders_may_stand_twice(tmp_path: Path, working: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    (tmp_path / "empty").mkdir()
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("d/", b"")
            archive.writestr("d/a", b"1")
            archive.mkdir("d/e/")
    else:
        with tarfile.open(path, "w") as archive:
            for name in (".", "d", "d/", "d/e"):
                archive.add(tmp_path / "empty", name)
            archive.add(write(tmp_path / "x.zip", []), "d/a")
    with opened(path, working) as directory:
        assert {file.name for file in directory.iterdir()} == {"a", "e"}


def test_what_was_unpacked_is_removed_after_an_error_which_names_the_archive(
    tmp_path: Path, working: Path
) -> None:
    path = write(tmp_path / "m.zip", list(FILES.items()))
    with pytest.raises(UserError) as caught, opened(path, working) as directory:
        raise UserError(f"{directory}/top/a.txt line 3 is wrong")
    assert str(caught.value) == f"{path}/top/a.txt line 3 is wrong"
    assert list(working.iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../x", "would leave the folder"),
        ("good/../../x", "would leave the folder"),
        ("/tmp/x", "would leave the folder"),
        ("good/a", "in the place of another member"),
        ("./good//a", "in the place of another member"),
        ("good", "in the place of another member"),
        ("good/a/b", "in the place of another member"),
    ],
)
def test_a_member_out_of_place_is_named_and_nothing_is_written(
    tmp_path: Path, working: Path, suffix: str, name: str, message: str
) -> None:
    files = [("good/a", b"1"), ("good/c", b"2"), (name, b"bad")]
    if suffix == ".zip" and name == "good/a":
        with pytest.warns(UserWarning, match="Duplicate"):
            path = write(tmp_path / f"m{suffix}", files)
    else:
        path = write(tmp_path / f"m{suffix}", files)
    with pytest.raises(UserError) as caught, opened(path, working):
        pass
    assert f"{path}: member 3, {name!r}, " in str(caught.value)
    assert message in str(caught.value)
    assert list(working.iterdir()) == []
    assert not (tmp_path / "x").exists()


def add_to_tar(kind: bytes) -> Callable[[Path, Path], None]:
    def write_tar(path: Path, target: Path) -> None:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, str(target)
        with tarfile.open(path, "w") as archive:
            archive.addfile(info)
            through = tarfile.TarInfo("link/planted")
            through.size = 3
            archive.addfile(through, io.BytesIO(b"bad"))

    return write_tar


def add_link_to_zip(path: Path, target: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        info = zipfile.ZipInfo("link")
        info.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(info, str(target))
        archive.writestr("link/planted", b"bad")


@pytest.mark.parametrize(
    ("name", "write_link"),
    [
        ("m.tar", add_to_tar(tarfile.SYMTYPE)),
        ("m.tar", add_to_tar(tarfile.LNKTYPE)),
        ("m.tar", add_to_tar(tarfile.CHRTYPE)),
        ("m.tar", add_to_tar(tarfile.FIFOTYPE)),
        ("m.zip", add_link_to_zip),
    ],
)
def test_links_and_devices_are_refused_so_that_nothing_passes_through_them(
    tmp_path: Path, working: Path, name: str, write_link: Callable[[Path, Path], None]
) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    write_link(tmp_path / name, target)
    with (
        pytest.raises(UserError, match=f"{name}: member 1, 'link', is a link or device"),
        opened(tmp_path / name, working),
    ):
        pass
    assert list(working.iterdir()) == list(target.iterdir()) == []


def test_a_file_with_a_password_is_refused(tmp_path: Path, working: Path) -> None:
    path = write(tmp_path / "m.zip", [("a", b"1")])
    content = bytearray(path.read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        content[content.index(signature) + offset] |= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="'a', is a file with a password"), opened(path, working):
        pass


def random_files() -> list[tuple[str, bytes]]:
    rng = random.Random(0)
    return [(f"d{i % 3}/{i}", rng.randbytes(rng.randrange(1500))) for i in range(12)]


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_a_truncated_archive_is_refused_wherever_it_ends(
    tmp_path: Path, working: Path, suffix: str
) -> None:
    path = write(tmp_path / f"m{suffix}", random_files())
    content = path.read_bytes()
    # A tar file ends with zeros, of which the first 512 bytes suffice.
    end = len(content.rstrip(b"\0")) + 500 if suffix == ".tar" else len(content)
    for size in {0, 1, 511, 512, 513, 1024, *range(1, end, 97), end - 1}:
        path.write_bytes(content[:size])
        with (
            pytest.raises(UserError, match=f"m{suffix} is damaged or truncated"),
            opened(path, working),
        ):
            pass
        assert list(working.iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_changed_bytes_raise_no_other_error_and_leave_nothing(
    tmp_path: Path, working: Path, suffix: str
) -> None:
    path, rng = write(tmp_path / f"m{suffix}", random_files()), random.Random(1)
    content = path.read_bytes()
    for _ in range(400):
        damaged = bytearray(content)
        for _ in range(rng.choice((1, 1, 8))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        with contextlib.suppress(UserError), opened(path, working):
            pass
        assert list(working.iterdir()) == []


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_what_is_no_archive_is_refused(tmp_path: Path, working: Path, suffix: str) -> None:
    path = tmp_path / f"m{suffix}"
    path.write_bytes(b"<html>Not found</html>" * 99)
    with pytest.raises(UserError, match="is damaged or truncated"), opened(path, working):
        pass
    path.unlink()
    with (
        pytest.raises(UserError, match=f"cannot read {path}: No such file"),
        opened(path, working),
    ):
        pass
