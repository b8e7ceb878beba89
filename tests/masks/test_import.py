"""`python -m corm_jax.masks import`: what it writes, again, in real processes, and killed."""

import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from salient import GOLDFISH, TENCH, annotation_rows, halves, write_annotations, write_archive

from corm_jax.masks.__main__ import main
from corm_jax.masks.records import MaskRecords

OUTPUT = "out"


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    write_archive(tmp_path / "masks")
    write_annotations(tmp_path / "answers.csv", annotation_rows())
    return [
        "import",
        "--format=salient_imagenet",
        f"--input={tmp_path / 'masks'}",
        f"--output={tmp_path / OUTPUT}",
        f"--annotations={tmp_path / 'answers.csv'}",
    ]


@pytest.fixture
def fails(capsys: pytest.CaptureFixture) -> Callable[[list[str]], str]:
    """Returns a function that runs a command which must fail, and returns its message."""

    def run(flags: list[str]) -> str:
        assert main(flags) == 1
        output, errors = capsys.readouterr()
        message = errors.splitlines()[-1]
        assert message.startswith("error: ")
        assert output == ""
        return message

    return run


def start(flags: list[str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "corm_jax.masks", *flags],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(flags: list[str]) -> tuple[int, str, str]:
    process = start(flags)
    output, errors = process.communicate(timeout=60)
    return process.returncode, output, errors


def snapshot(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {f.name: (f.stat().st_mtime_ns, f.read_bytes()) for f in directory.iterdir()}


def decoded(records: MaskRecords, kind: str, name: str) -> np.ndarray:
    row = records.file_names.tolist().index(name.encode())
    return np.asarray(Image.open(io.BytesIO(records.png(kind, row))).convert("L"))


def test_a_process_imports_and_the_same_command_again_does_nothing(
    flags: list[str], tmp_path: Path
) -> None:
    code, output, errors = run(flags)
    assert (code, errors) == (0, "")  # no progress bar in a log file
    assert output.splitlines()[:3] == [
        "salient_imagenet: 5 images, 3 with a core mask, 3 with a spurious mask",
        "skipped: 1 annotated features that are not in the archive",
        "frame: center_crop (resize 256, crop 224)",
    ]
    assert f"written to {tmp_path / OUTPUT} (0.0 MiB)" in output
    records = MaskRecords.open(tmp_path / OUTPUT)
    assert records.frame == {"type": "center_crop", "resize": 256, "crop": 224}
    assert records.has("core").sum() == records.has("spurious").sum() == 3
    np.testing.assert_array_equal(decoded(records, "core", f"{TENCH}_1.JPEG"), halves(200, 90))
    np.testing.assert_array_equal(decoded(records, "spurious", f"{GOLDFISH}_7.JPEG"), halves(0, 70))
    before = snapshot(tmp_path / OUTPUT)
    assert run(flags) == (0, f"{tmp_path / OUTPUT} is imported already\n", "")
    assert snapshot(tmp_path / OUTPUT) == before
    assert {path.name for path in tmp_path.iterdir()} == {"masks", "answers.csv", OUTPUT}


def test_an_error_of_a_process_is_one_line_without_traceback(
    flags: list[str], tmp_path: Path
) -> None:
    (tmp_path / "masks/wordnet_dict.py").unlink()
    code, output, errors = run(flags)
    assert (code, output) == (1, "")
    assert errors.startswith("error: cannot read ")
    assert errors.count("\n") == 1


def test_a_grid_holds_the_means_of_its_cells(flags: list[str], tmp_path: Path) -> None:
    assert main([*flags, "--grid=2,4"]) == 0
    records = MaskRecords.open(tmp_path / OUTPUT)
    row = records.file_names.tolist().index(f"{TENCH}_1.JPEG".encode())
    assert records.grids("core", np.array([row])).tolist() == [[[200, 200, 90, 90]] * 2]
    assert records.grids("spurious", np.array([row])).tolist() == [[[0, 0, 255, 255]] * 2]


def test_a_cell_that_is_no_whole_number_of_pixels_is_weighed(
    flags: list[str], tmp_path: Path
) -> None:
    assert main([*flags, "--grid=1,3"]) == 0
    records = MaskRecords.open(tmp_path / OUTPUT)
    row = records.file_names.tolist().index(f"{TENCH}_1.JPEG".encode())
    # The middle third of 224 columns lies half in (200), half in (90).
    np.testing.assert_allclose(
        records.grids("core", np.array([row]))[0].astype(int), [[200, 145, 90]], atol=1
    )


@pytest.mark.parametrize("suffix", [".zip", ".tar", ".tgz"])
def test_an_archive_gives_what_its_directory_gives(
    flags: list[str], tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture
) -> None:
    assert main(flags) == 0
    path = tmp_path / f"masks{suffix}"
    shutil.make_archive(
        str(tmp_path / "masks"),
        {".zip": "zip", ".tar": "tar", ".tgz": "gztar"}[suffix],
        tmp_path,
        "masks",
    )
    if suffix == ".tgz":
        (tmp_path / "masks.tar.gz").rename(path)
    again = [*flags, f"--input={path}", f"--output={tmp_path / 'again'}"]
    assert main(again) == 0
    expected, found = (snapshot(tmp_path / name) for name in (OUTPUT, "again"))
    for name in expected.keys() - {"masks.json"}:
        assert found[name][1] == expected[name][1], name
    assert main(again) == 0
    assert capsys.readouterr().out.endswith("again is imported already\n")
    assert not list(tmp_path.glob(".*"))


def test_an_error_within_an_archive_names_the_archive(
    flags: list[str], tmp_path: Path, fails: Callable
) -> None:
    (tmp_path / "masks" / TENCH / "image_names_map.csv").write_text("9\n")
    shutil.make_archive(str(tmp_path / "masks"), "zip", tmp_path / "masks")
    message = fails([*flags, f"--input={tmp_path / 'masks.zip'}"])
    assert f"error: {tmp_path}/masks.zip/{TENCH}/image_names_map.csv line 1: feature 9" in message
    assert not (tmp_path / OUTPUT).exists()
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("name", ["../planted", "/planted"])
@pytest.mark.parametrize("suffix", [".zip", ".tar"])
def test_an_archive_that_escapes_writes_nothing(
    flags: list[str], tmp_path: Path, fails: Callable, suffix: str, name: str
) -> None:
    path = tmp_path / f"bad{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(name, b"")
    else:
        with tarfile.open(path, "w") as archive:
            archive.addfile(tarfile.TarInfo(name))
    before = sorted(tmp_path.rglob("*"))
    assert f"bad{suffix}: member 1, {name!r}" in fails([*flags, f"--input={path}"])
    assert sorted(tmp_path.rglob("*")) == before


def test_a_damaged_mask_at_the_end_leaves_nothing(
    flags: list[str], tmp_path: Path, fails: Callable
) -> None:
    (tmp_path / "masks" / GOLDFISH / "feature_11" / f"{GOLDFISH}_7.JPEG").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    assert f"{GOLDFISH}_7.JPEG is not a readable JPEG" in fails(flags)
    assert sorted(tmp_path.rglob("*")) == before


def change_grid(flags: list[str], tmp_path: Path) -> list[str]:
    return [*flags, "--grid=7,7"]


def change_votes(flags: list[str], tmp_path: Path) -> list[str]:
    return [*flags, "--votes=4"]


def change_annotations(flags: list[str], tmp_path: Path) -> list[str]:
    path = tmp_path / "answers.csv"
    path.write_text(path.read_text().replace("4.0", "5.0"))  # of the same size
    return flags


def change_input(flags: list[str], tmp_path: Path) -> list[str]:
    (tmp_path / "masks" / TENCH / "more").touch()
    return flags


def change_size(flags: list[str], tmp_path: Path) -> list[str]:
    with (tmp_path / "masks/wordnet_dict.py").open("a") as file:
        file.write("\n")
    return flags


def change_format(flags: list[str], tmp_path: Path) -> list[str]:
    return ["import", "--format=folder", *flags[2:4]]


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        (change_grid, "--grid=None (now 7,7)"),
        (change_votes, "--votes=3 (now 4)"),
        (change_annotations, "another --annotations"),
        (change_input, "other files in --input"),
        (change_size, "other files in --input"),
        (change_format, "--format=salient_imagenet (now folder)"),
    ],
)
def test_an_output_of_another_import_is_kept_and_the_difference_named(
    flags: list[str],
    tmp_path: Path,
    fails: Callable,
    capsys: pytest.CaptureFixture,
    change: Callable,
    difference: str,
) -> None:
    assert main(flags) == 0
    capsys.readouterr()
    before = snapshot(tmp_path / OUTPUT)
    message = fails(change(flags, tmp_path))
    assert f"{OUTPUT} was imported with {difference}; choose another --output" in message
    assert snapshot(tmp_path / OUTPUT) == before


def test_a_moved_input_is_the_same_import(
    flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert main(flags) == 0
    for name in ("masks", "answers.csv"):
        (tmp_path / name).rename(tmp_path / f"moved-{name}")
    moved = [f"--input={tmp_path}/moved-masks", f"--annotations={tmp_path}/moved-answers.csv"]
    assert main([*flags, *moved]) == 0
    assert capsys.readouterr().out.endswith("is imported already\n")


def test_an_output_that_was_damaged_is_not_taken_for_imported(
    flags: list[str], tmp_path: Path, fails: Callable, capsys: pytest.CaptureFixture
) -> None:
    assert main(flags) == 0
    capsys.readouterr()
    path = tmp_path / OUTPUT / "core.bin"
    path.write_bytes(path.read_bytes()[:-1])
    message = fails(flags)
    assert "core.bin is truncated" in message
    assert f"remove {tmp_path / OUTPUT} and import again" in message


def test_an_output_that_no_import_made_is_kept(
    flags: list[str], tmp_path: Path, fails: Callable, capsys: pytest.CaptureFixture
) -> None:
    output = tmp_path / OUTPUT
    output.mkdir()
    (output / "precious").touch()
    assert f"{output} exists already and holds no mask records" in fails(flags)
    assert [file.name for file in output.iterdir()] == ["precious"]
    shutil.rmtree(output)
    assert main(flags) == 0
    capsys.readouterr()
    header = json.loads((output / "masks.json").read_text())
    del header["origin"]
    (output / "masks.json").write_text(json.dumps(header))
    assert f"{output} holds mask records that were not imported" in fails(flags)


def block(mask: Path) -> bytes:
    """Puts a pipe in the place of a mask, at which an import waits for ever; returns the mask."""
    content = mask.read_bytes()
    mask.unlink()
    os.mkfifo(mask)
    return content


def started_and_blocked(flags: list[str], working: Path) -> subprocess.Popen:
    process = start(flags)
    deadline = time.monotonic() + 60
    while not list(working.glob(".records-*/core.data")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return process


def test_a_killed_import_leaves_no_output_and_the_next_one_clears_up(
    flags: list[str], tmp_path: Path
) -> None:
    mask = tmp_path / "masks" / GOLDFISH / "feature_11" / f"{GOLDFISH}_7.JPEG"
    working = tmp_path / f".{OUTPUT}.importing"
    content = block(mask)
    process = started_and_blocked(flags, working)
    process.kill()
    process.communicate(timeout=60)
    assert not (tmp_path / OUTPUT).exists()
    assert list(working.iterdir())
    mask.unlink()
    mask.write_bytes(content)
    code, output, _ = run(flags)
    assert code == 0
    assert "5 images" in output
    assert not working.exists()
    assert len(MaskRecords.open(tmp_path / OUTPUT).file_names) == 5


def test_two_imports_to_one_output_at_a_time_are_refused(
    flags: list[str], tmp_path: Path, fails: Callable
) -> None:
    mask = tmp_path / "masks" / GOLDFISH / "feature_11" / f"{GOLDFISH}_7.JPEG"
    block(mask)
    process = started_and_blocked(flags, tmp_path / f".{OUTPUT}.importing")
    assert f"another process is importing to {tmp_path / OUTPUT}" in fails(flags)
    assert process.poll() is None
    process.kill()
    process.communicate(timeout=60)


def test_an_input_without_masks_is_refused(
    flags: list[str], tmp_path: Path, fails: Callable
) -> None:
    for directory in (TENCH, GOLDFISH):
        shutil.rmtree(tmp_path / "masks" / directory)
    message = fails(flags)
    assert f"{tmp_path / 'masks'} holds no masks of format salient_imagenet" in message
    assert not (tmp_path / OUTPUT).exists()
    assert not list(tmp_path.glob(".*"))


def test_paths_that_cannot_be_are_refused(
    flags: list[str], tmp_path: Path, fails: Callable
) -> None:
    absent = tmp_path / "absent"
    assert f"--input={absent} does not exist" in fails([*flags, f"--input={absent}"])
    message = fails([*flags, f"--annotations={absent}"])
    assert f"cannot read {absent}: No such file" in message
    message = fails([*flags, f"--output={tmp_path / 'masks/records'}"])
    assert "lies inside --input" in message
    (tmp_path / "file").touch()
    assert "cannot write" in fails([*flags, f"--output={tmp_path / 'file/out'}"])


def test_an_unknown_format_is_answered_with_the_nearest(flags: list[str], fails: Callable) -> None:
    message = fails([*flags[:1], "--format=salient_imagnet", *flags[2:]])
    assert "unknown --format 'salient_imagnet' (did you mean 'salient_imagenet'?)" in message


@pytest.mark.parametrize("order", [1, -1])
def test_help_shows_the_options_of_the_named_format(
    capsys: pytest.CaptureFixture, order: int
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["import", *["--format=salient_imagenet", "--help"][::order]])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--annotations" in text
    assert "image_names_map.csv" in text
    with pytest.raises(SystemExit):
        main(["import", "--help"])
    text = capsys.readouterr().out
    assert "--annotations" not in text
    assert "salient_imagenet, folder, boxes, hard_imagenet, coco" in " ".join(text.split())


@pytest.mark.parametrize("grid", ["7", "7,", "0,7", "7x7", "7,7,7", "a,7", "7,7,"])
def test_a_grid_that_is_none_is_refused(
    flags: list[str], capsys: pytest.CaptureFixture, grid: str
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*flags, f"--grid={grid}"])
    assert caught.value.code == 2
    assert f"{grid} is not HEIGHT,WIDTH" in capsys.readouterr().err


def test_options_of_another_format_are_refused(
    flags: list[str], capsys: pytest.CaptureFixture
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["import", "--format=folder", *flags[2:]])
    assert caught.value.code == 2
    assert "unrecognized arguments: --annotations" in capsys.readouterr().err
