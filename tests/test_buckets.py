"""Runs and data in a bucket, against a stand-in for Cloud Storage."""

import gc
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils.epath import gpath
from fake_bucket import FakeBucket
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from corm_jax import buckets, init
from corm_jax.checkpoint import Checkpoints, complete_steps
from corm_jax.config import base_config
from corm_jax.data.dataset import open_dataset
from corm_jax.data.prepare import prepare_embedded
from corm_jax.data.tfds_source import TfdsImages, find_prepared
from corm_jax.errors import UserError
from corm_jax.files import data_path, read_json, replacing, run_path, write_json
from corm_jax.progress import History, read_history
from corm_jax.sharding import create_mesh


@pytest.fixture(scope="module")
def server() -> Iterator[FakeBucket]:
    """One for all tests: the libraries remember where it is as long as the process lives."""
    with FakeBucket() as fake, pytest.MonkeyPatch.context() as patch:
        for name, value in fake.environment().items():
            patch.setenv(name, value)
        patch.setenv("EPATH_USE_TF", "false")
        # Other tests have made etils choose TensorFlow's client, once for this process.
        gpath._is_tf_installed.cache_clear()
        yield fake
        gpath._is_tf_installed.cache_clear()


@pytest.fixture
def fake(server: FakeBucket) -> Iterator[FakeBucket]:
    yield server
    server.refusal = 0
    gc.collect()  # what Orbax abandons when a read fails complains here


@pytest.fixture
def place(fake: FakeBucket, request: pytest.FixtureRequest) -> Path:
    """A directory of the test's own in the bucket."""
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    return run_path(f"gs://bucket/{name}", "--workdir")


def tree(seed: int) -> dict[str, jax.Array]:
    kernel = np.random.default_rng(seed).normal(size=(64, 48))
    return {"kernel": jnp.asarray(kernel, jnp.float32), "step": jnp.asarray(seed, jnp.int32)}


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=NamedSharding(create_mesh(-1, 1), PartitionSpec())
    ),
    tree(0),
)


def save(workdir: Path, *steps: int) -> None:
    checkpoints = Checkpoints(workdir / "checkpoints", best="core")
    for step in steps:
        checkpoints.save(step, tree(step), {"position": 8 * step}, {"core": 1 / step})
    checkpoints.close()


def save_and_wait(checkpoints: Checkpoints, step: int) -> None:
    checkpoints.save(step, tree(step), {}, None)
    checkpoints.wait()


def restore(workdir: Path) -> int:
    """Returns the step that is restored; all of it must be that step's."""
    checkpoints = Checkpoints(workdir / "checkpoints", best="core")
    state, run = checkpoints.restore(ABSTRACT)
    checkpoints.close()
    step = int(state["step"])
    assert run["position"] == 8 * step
    np.testing.assert_array_equal(state["kernel"], tree(step)["kernel"])
    return step


def prefix(path: Path) -> str:
    return str(path).removeprefix("gs://bucket/")


def test_latest_two_and_best_are_kept(place: Path) -> None:
    save(place, 1, 2, 3, 4)
    assert sorted(complete_steps(place / "checkpoints")) == [1, 3, 4]
    assert restore(place) == 4


def cut_short(fake: FakeBucket, directory: str) -> None:
    largest = max(fake.names(directory), key=lambda name: len(fake.objects[name].content))
    content = fake.objects[largest].content
    fake.put(largest, content[: len(content) // 2])


def flip_a_bit(fake: FakeBucket, directory: str) -> None:
    largest = max(fake.names(directory), key=lambda name: len(fake.objects[name].content))
    content = bytearray(fake.objects[largest].content)
    content[len(content) // 2] ^= 1
    fake.put(largest, bytes(content))


def lose_manifests(fake: FakeBucket, directory: str) -> None:
    for name in fake.names(directory):
        if name.endswith("manifest.ocdbt"):
            del fake.objects[name]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [cut_short, flip_a_bit, lose_manifests])
def test_damaged_newest_falls_back_and_is_kept_apart(
    damage: Callable[[FakeBucket, str], None],
    fake: FakeBucket,
    place: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    save(place, 10, 20)
    damage(fake, f"{prefix(place)}/checkpoints/20/")
    damaged = {name: fake.objects[name].content for name in fake.names(f"{prefix(place)}/")}
    assert restore(place) == 10
    assert f"{place}/checkpoints/20 is damaged" in caplog.text
    assert not fake.names(f"{prefix(place)}/checkpoints/20/")
    for name in fake.names(f"{prefix(place)}/corrupt_checkpoints/20/"):
        assert fake.objects[name].content == damaged[name.replace("corrupt_", "")]
    assert f"{prefix(place)}/corrupt_checkpoints/20/commit_success.txt" in fake.objects
    save(place, 20)
    assert restore(place) == 20


def test_a_checkpoint_that_was_not_saved_to_the_end_does_not_count(
    fake: FakeBucket, place: Path
) -> None:
    save(place, 10, 20)
    del fake.objects[f"{prefix(place)}/checkpoints/20/commit_success.txt"]
    assert complete_steps(place / "checkpoints") == [10]
    assert restore(place) == 10
    save(place, 20)
    assert restore(place) == 20


def test_a_bucket_that_fails_is_no_damage(fake: FakeBucket, place: Path) -> None:
    save(place, 10, 20)
    before = fake.names()
    checkpoints = Checkpoints(place / "checkpoints", best="core")
    fake.refusal = 403
    with pytest.raises(UserError, match=r"checkpoints/20 cannot be reached .* same") as info:
        checkpoints.restore(ABSTRACT)
    assert "\n" not in str(info.value)
    with pytest.raises(UserError, match="cannot save a checkpoint in gs://bucket/"):
        save_and_wait(checkpoints, 30)
    fake.refusal = 0
    assert restore(place) == 20
    assert set(before) <= set(fake.names())


def test_files_appear_whole_or_not_at_all(fake: FakeBucket, place: Path) -> None:
    path = place / "a.json"
    write_json(path, {"a": [1, None]})
    assert read_json(path) == {"a": [1, None]}

    def fail() -> None:
        with replacing(path) as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    assert read_json(path) == {"a": [1, None]}
    assert fake.names(f"{prefix(place)}/") == [f"{prefix(place)}/a.json"]
    fake.refusal = 403
    with pytest.raises(UserError, match=f"cannot write {path}"):
        write_json(path, {})


def test_an_object_that_is_not_there_is_named(place: Path) -> None:
    with pytest.raises(UserError, match=f"cannot read {place}/absent.json"):
        read_json(place / "absent.json")


def test_history_is_there_when_it_is_published_and_goes_on(fake: FakeBucket, place: Path) -> None:
    history = History(place, start=0)
    for step in (1, 2):
        history.write(step, {"train/loss": 1 / step})
    assert read_history(place / "history.jsonl") == []  # too soon after the start
    history.publish()
    assert [record["step"] for record in read_history(place / "history.jsonl")] == [1, 2]
    events = fake.names(f"{prefix(place)}/tensorboard/")
    assert len(events) == 1
    generation = fake.objects[events[0]].generation
    history.publish()
    assert fake.objects[events[0]].generation == generation  # has not changed
    history.close()

    again = History(place, start=1)
    again.close()
    assert read_history(place / "history.jsonl") == [{"step": 1, "train/loss": 1.0}]
    assert not set(events) & set(fake.names(f"{prefix(place)}/tensorboard/"))


def test_history_that_cannot_be_copied_is_tried_again(
    fake: FakeBucket,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(buckets, "PUBLISH_SECONDS", 0.0)
    history = History(place, start=0)
    fake.refusal = 403
    history.write(1, {"train/loss": 1.0})
    assert f"cannot write {place}/history.jsonl" in caplog.text
    with pytest.raises(UserError, match=f"cannot write {place}/history.jsonl"):
        history.publish()
    fake.refusal = 0
    history.publish()
    fake.refusal = 403
    history.write(2, {"train/loss": 0.5})
    history.close()  # the run may be ending by an error of its own
    fake.refusal = 0
    assert read_history(place / "history.jsonl") == [{"step": 1, "train/loss": 1.0}]


def test_files_that_grow_are_published_now_and_then(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    mirror = buckets.Mirror(place / "profile")
    (mirror.local / "a").mkdir()
    (mirror.local / "a" / "trace").write_text("trace")
    for seconds, there in ((29, False), (31, True)):
        now[0] = seconds
        mirror.publish(soon=False)
        assert (place / "profile" / "a" / "trace").exists() == there
    mirror.close()
    assert not mirror.local.exists()


@pytest.mark.parametrize("text", ["gs://", "gs://bucket", "gs://bucket/", "gs:///run"])
def test_a_path_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=f"--workdir={text} must name .* gs://BUCKET/NAME"):
        run_path(text, "--workdir")


@pytest.mark.parametrize("path", [run_path, data_path])
def test_a_bucket_that_does_not_exist_is_named(fake: FakeBucket, path: Callable) -> None:
    with pytest.raises(UserError, match=r"^key=gs://other/a: there is no bucket other; create"):
        path("gs://other/a", "key")


@pytest.mark.parametrize(("path", "needs"), [(run_path, "write"), (data_path, "list and read")])
def test_credentials_that_do_not_suffice_are_named(
    fake: FakeBucket, path: Callable, needs: str
) -> None:
    fake.refusal = 403
    with pytest.raises(UserError, match=rf"^key=gs://bucket/a: .*refused by the test.*{needs}"):
        path("gs://bucket/a", "key")


def test_a_server_that_does_not_answer_is_named_at_once(
    fake: FakeBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", "http://127.0.0.1:9")
    since = time.monotonic()
    with pytest.raises(UserError, match=r"the bucket cannot be reached .*mount the bucket"):
        run_path("gs://bucket/a", "--workdir")
    assert time.monotonic() - since < 10


def test_no_credentials_are_named_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("STORAGE_EMULATOR_HOST", raising=False)
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    since = time.monotonic()
    with pytest.raises(UserError, match=r"no credentials for the bucket .* application-default"):
        run_path("gs://bucket/a", "--workdir")
    assert time.monotonic() - since < 10


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gcsfs", None)
    with pytest.raises(UserError, match=r"gcsfs is not installed; pip install -e '.\[gcs\]'"):
        run_path("gs://bucket/a", "--workdir")


def tiny(data_dir: str) -> ConfigDict:
    config = base_config("erm")
    config.data.update({"tfds_name": "spurious_shapes/tiny", "data_dir": data_dir})
    return config


def test_data_that_are_drawn_are_not_drawn_into_a_bucket(fake: FakeBucket) -> None:
    with pytest.raises(UserError, match=r"data_dir=gs://bucket/a: spurious_shapes/tiny is drawn"):
        open_dataset(tiny("gs://bucket/a"))


def test_data_that_are_not_there_are_named(fake: FakeBucket) -> None:
    with pytest.raises(UserError, match=r"config.data.data_dir=gs://other/a: there is no bucket"):
        open_dataset(tiny("gs://other/a"))
    config = tiny("gs://bucket/a")
    config.data.tfds_name = "imagenet2012"
    with pytest.raises(UserError, match=r"imagenet2012 .*gs://bucket/a"):
        open_dataset(config)


def test_records_that_are_cut_short_are_named(fake: FakeBucket, tmp_path: Path) -> None:
    directory, _ = prepare_embedded("spurious_shapes/tiny", tmp_path)
    for path in (path for path in directory.iterdir() if path.is_file()):
        short = "-train.array_record" in path.name
        fake.put(f"short/copy/1.0.0/{path.name}", path.read_bytes()[: 70_000 if short else None])
    directory = find_prepared("copy", data_path("gs://bucket/short", "key"))
    labels = TfdsImages(directory, "validation").labels()
    assert sorted(np.unique(labels)) == list(range(6))
    assert "short/copy/1.0.0/labels-validation.npy" in fake.objects
    np.testing.assert_array_equal(TfdsImages(directory, "validation").labels(), labels)
    with pytest.raises(UserError, match=rf":train in {directory} cannot be read"):
        TfdsImages(directory, "train").labels()


def test_what_a_run_starts_from_is_looked_for_in_the_bucket(
    fake: FakeBucket, tmp_path: Path
) -> None:
    config = base_config("erm")
    config.init = "gs://other/run"
    with pytest.raises(UserError, match=r"config.init=gs://other/run: there is no bucket other"):
        init.load(config, tmp_path)
    config.init = "gs://bucket/nothing"
    with pytest.raises(UserError, match=r"config.init=gs://bucket/nothing does not exist"):
        init.load(config, tmp_path)


def test_other_object_stores_are_refused() -> None:
    with pytest.raises(UserError, match=r"--workdir=s3://bucket/a is in an object store.* mount"):
        run_path("s3://bucket/a", "--workdir")
