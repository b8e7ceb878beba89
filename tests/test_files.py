"""Files appear whole or not at all."""

import errno
from pathlib import Path

import pytest

from corm_jax.errors import UserError
from corm_jax.files import local_path, read_json, replacing, replacing_directory, write_json


def test_a_file_appears_when_the_block_ends_and_replaces_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "new" / "a.json"
    for content in ("first", "second"):
        with replacing(path) as temporary:
            temporary.write_text(content)
            assert not path.exists() or path.read_text() == "first"
        assert path.read_text() == content
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_text("old")

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_reported_with_the_path_and_leaves_nothing(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(UserError, match=r"cannot write .*a.json: No space left on device"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_parent_that_is_a_file_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot write .*a.json"):
        write_json(tmp_path / "file" / "a.json", {})
    with (
        pytest.raises(UserError, match=r"cannot write .*directory"),
        replacing_directory(tmp_path / "file" / "directory"),
    ):
        pass


def test_a_directory_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new" / "d"
    with replacing_directory(path) as temporary:
        (temporary / "content").touch()
        assert not path.exists()
    assert [file.name for file in path.iterdir()] == ["content"]
    assert list(path.parent.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o755


def test_a_directory_of_a_failed_block_vanishes_and_the_error_passes(tmp_path: Path) -> None:
    def fail() -> None:
        with replacing_directory(tmp_path / "d") as temporary:
            (temporary / "content").touch()
            raise FileNotFoundError("another file")

    with pytest.raises(FileNotFoundError, match="another file"):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_a_directory_that_appeared_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "d"

    def race() -> None:
        with replacing_directory(path):
            path.mkdir()
            (path / "other").touch()

    with pytest.raises(UserError, match=f"cannot write {path}"):
        race()
    assert [file.name for file in path.iterdir()] == ["other"]


def test_json_comes_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": [1, 0.5, None, "ü"]})
    assert read_json(tmp_path / "a.json") == {"a": [1, 0.5, None, "ü"]}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_json_that_cannot_be_parsed_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError, match=r"a.json is not valid JSON"):
        read_json(tmp_path / "a.json")


def test_json_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "absent", tmp_path):
        with pytest.raises(UserError, match=f"cannot read {path}"):
            read_json(path)


@pytest.mark.parametrize("text", ["gs://bucket/run", "s3://bucket/run"])
def test_object_stores_are_refused_rather_than_taken_for_directories(text: str) -> None:
    with pytest.raises(UserError, match=f"--workdir={text} is in an object store.* mount"):
        local_path(text, "--workdir")


def test_home_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/run", "--workdir") == tmp_path / "run"
