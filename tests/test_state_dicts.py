"""Files of state dicts, in the formats that need no PyTorch."""

import subprocess
import sys
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from corm_jax.errors import UserError
from corm_jax.state_dicts import encode, read

VALUES = np.array([[1.0, -2.5, 0.0], [3e-3, 65504.0, 7.0]], np.float32)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_what_is_written_is_read_bit_for_bit(tmp_path: Path, suffix: str) -> None:
    state = {"a.weight": VALUES, "count": np.array(7, np.int64), "nan": np.array([-np.nan, -0.0])}
    path = tmp_path / f"a{suffix}"
    path.write_bytes(encode(state, suffix))
    found, statistics = read(path)
    assert statistics is None
    assert found.keys() == state.keys()
    for name, array in state.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_precision_is_widened_exactly(tmp_path: Path, dtype: type) -> None:
    half = VALUES.astype(dtype)
    (tmp_path / "a.safetensors").write_bytes(safetensors.numpy.save({"a": half}))
    found = read(tmp_path / "a.safetensors").state["a"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found.astype(dtype), half)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_wrappers_are_taken_off_and_the_normaliser_out(tmp_path: Path, suffix: str) -> None:
    state = {
        "module.model.fc.weight": VALUES,
        "module.normalizer.new_mean": np.full((3, 1, 1), 0.25, np.float32),
        "module.normalizer.new_std": np.full((3, 1, 1), 0.5, np.float32),
        "module.attacker.model.fc.weight": VALUES,
    }
    (tmp_path / f"a{suffix}").write_bytes(encode(state, suffix))
    found, statistics = read(tmp_path / f"a{suffix}")
    assert list(found) == ["fc.weight"]
    assert statistics == ((0.25,) * 3, (0.5,) * 3)


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_damaged_files_are_named_in_one_line(tmp_path: Path, suffix: str) -> None:
    path, rng = tmp_path / f"a{suffix}", np.random.default_rng(0)
    whole = encode({"a": VALUES, "b": VALUES}, suffix)
    contents = [whole[:size] for size in range(0, len(whole) - 1, max(1, len(whole) // 60))]
    for content in [*contents, rng.bytes(100), b"<html>not found</html>", b"PK\x03\x04"]:
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"a{suffix}: is damaged, or no ") as error:
            read(path)
        assert "\n" not in str(error.value)


def test_files_that_are_none_are_named(tmp_path: Path) -> None:
    (tmp_path / "dir.npz").mkdir()
    with pytest.raises(UserError, match=r"dir.npz: cannot be read: Is a directory"):
        read(tmp_path / "dir.npz")
    with pytest.raises(UserError, match=r"none.safetensors: cannot be read: No such file"):
        read(tmp_path / "none.safetensors")
    np.save(tmp_path / "a.npy", VALUES)
    (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    with pytest.raises(UserError, match=r"a.npz: is damaged, or no .npz file"):
        read(tmp_path / "a.npz")


class Attack:
    """Prints where it is unpickled."""

    def __reduce__(self) -> tuple:
        return print, ("executed",)


def test_objects_in_an_npz_file_are_not_unpickled(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    objects = np.empty(1, object)
    objects[0] = Attack()
    np.savez(tmp_path / "a.npz", a=objects)
    with pytest.raises(UserError, match=r"a.npz: is damaged, or no .npz file of plain arrays"):
        read(tmp_path / "a.npz")
    assert capsys.readouterr().out == ""
    np.load(tmp_path / "a.npz", allow_pickle=True)["a"]
    assert "executed" in capsys.readouterr().out  # the attack is a real one


def test_arrays_that_are_no_numbers_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", a=VALUES.astype(ml_dtypes.bfloat16))  # numpy forgets the dtype
    with pytest.raises(UserError, match=r"a.npz: 'a' is of dtype .*; save float32 instead"):
        read(tmp_path / "a.npz")


def test_no_format_but_pytorchs_needs_pytorch(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".npz"):
        (tmp_path / f"a{suffix}").write_bytes(encode({"a": VALUES}, suffix))
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from pathlib import Path; from corm_jax.state_dicts import encode, read\n"
        f"for path in sorted(Path({str(tmp_path)!r}).iterdir()): print(read(path).state['a'][1, 2])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert done.stdout.split() == ["7.0", "7.0"], done.stderr


def test_an_unknown_format_to_write_is_named() -> None:
    with pytest.raises(UserError, match=r"unknown format of a file '.ptx' \(did you mean '.pth'"):
        encode({}, ".ptx")
