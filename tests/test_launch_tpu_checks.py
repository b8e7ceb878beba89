"""launch/tpu_vm.sh, tpu_queued.sh: what they refuse before anything costs money."""

from pathlib import Path

import pytest
from launching import CONFIG, refused, without_program
from launching_tpu import PLACE, QUEUED, VM, WORKDIR, Cloud


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--name": "Corm"}, "--name must be of at most 63 small letters"),
        ({"--name": "c;rm -rf"}, "--name must be of at most 63 small letters"),
        ({"--zone": "us-central9-z"}, "there are: us-central1-a us-central2-b"),
        ({"--accelerator-type": "v4-7"}, "--accelerator-type=v4-7 is not offered"),
        ({"--runtime-version": "tpu"}, "--runtime-version=tpu is not offered"),
        ({"--project": None}, "--project is missing (or the environment variable LAUNCH_PROJECT)"),
        ({"--accelerator-type": None}, "environment variable LAUNCH_ACCELERATOR_TYPE)"),
        ({"--delete": "yes"}, "--delete must be one of: never success always; not 'yes'"),
        ({"--max-restarts": "-1"}, "--max-restarts must be a whole number from 0"),
        ({"--bucket": "other"}, "bucket gs://other cannot be read"),
        ({"--bucket": "gs://bucket"}, "without gs:// and without a directory, not 'gs://bucket'"),
        ({"--bucket": "bucket/run"}, "without gs:// and without a directory, not 'bucket/run'"),
        ({"--bucket": "b;touch hacked"}, "--bucket must be the name of a bucket"),
        ({"--": "--workdir=gs://other/run"}, "bucket gs://other cannot be read"),
        ({"--": "--config.init=gs://other/run"}, "bucket gs://other cannot be read"),
        ({"--": "--workdir=gs://bucket/"}, "a flag is --workdir=gs://bucket/; what"),
        ({"--": "--config.data.data_dir=s3://other/x"}, "name the path that it has there"),
        ({"--": "--config.data.folder=gs://bucket/x"}, "name the path that it has there"),
        ({"--": "gs://bucket/run"}, "a flag is gs://bucket/run; what the program reads and"),
        ({"--": "--config=configs/none.py"}, "config file configs/none.py is not in"),
    ],
)
def test_refused_before_anything_is_created(
    cloud: Cloud, change: dict[str, str | None], message: str
) -> None:
    options = dict(option.split("=", 1) for option in PLACE) | change
    flags = [CONFIG, WORKDIR, options.pop("--", None) or WORKDIR]
    values = [f"{key}={value}" for key, value in options.items() if value is not None]
    result = cloud.run(VM, *values, "--", *flags)
    assert message in refused(result, first=False)
    assert cloud.changes() == []


def test_queued_is_refused_before_anything_is_created(cloud: Cloud) -> None:
    result = cloud.run(QUEUED, *PLACE, "--bucket=other", "--", CONFIG, "--workdir=/mnt/other/run")
    assert "bucket gs://other cannot be read" in refused(result, first=False)
    result = cloud.run(QUEUED, *PLACE, "--", CONFIG, "--workdir=gs://other/run")
    assert "bucket gs://other cannot be read" in refused(result, first=False)
    assert cloud.changes() == []


@pytest.mark.parametrize(
    ("world", "messages"),
    [
        ({"account": ""}, ["nobody is logged in to gcloud; run: gcloud auth login"]),
        (
            {"refuse": {"compute tpus locations": "PERMISSION_DENIED: Cloud TPU API is off"}},
            ["PERMISSION_DENIED: Cloud TPU API is off", "its message stands above"],
        ),
        ({"slices": {"corm": ["READY", "v4-16"]}}, ["corm exists as a v4-16"]),
        ({"slices": {"corm": ["PREEMPTED", "v4-8"]}}, ["corm exists and is PREEMPTED", "delete"]),
    ],
)
def test_tpu_vm_refuses(cloud: Cloud, world: dict, messages: list[str]) -> None:
    cloud.set(**world)
    result = cloud.run(VM, *PLACE, "--", CONFIG)
    assert result.returncode == 1
    for message in messages:
        assert message.replace("its message", "gcloud's message") in result.stderr
    assert cloud.changes() == []


@pytest.mark.parametrize(("script", "kind"), [(VM, "tpu-vm"), (QUEUED, "queued-resources")])
def test_no_quota_passes_the_message_on(cloud: Cloud, script: str, kind: str) -> None:
    cloud.set(refuse={f"compute tpus {kind} create": "RESOURCE_EXHAUSTED: Quota limit 'TPUV4'"})
    result = cloud.run(script, *PLACE, "--delete=always", "--", CONFIG, WORKDIR)
    assert "RESOURCE_EXHAUSTED: Quota limit 'TPUV4'" in result.stderr
    assert "iam-admin/quotas" in refused(result, first=False)
    assert cloud.changes() == [f"{kind} create"]  # and no deletion of what is not there


@pytest.mark.parametrize("options", [[VM, "--delete=success"], [VM, "--delete=always"], [QUEUED]])
@pytest.mark.parametrize(
    ("bucket", "workdir"),
    [
        ("bucket", ""),
        ("bucket", "runs/x"),
        ("bucket", "/mnt/other/run"),
        ("bucket", "/mnt/bucket"),
        ("bucket", "/mnt/bucket-2/run"),
        ("bucket", "/mnt/bucket/../run"),
        ("", "/mnt/bucket/run"),
    ],
)
def test_results_are_not_deleted_with_the_slice(
    cloud: Cloud, options: list[str], bucket: str, workdir: str
) -> None:
    script, *options = options
    options += [*PLACE, f"--bucket={bucket}", "--", CONFIG, f"--workdir={workdir}"]
    message = refused(cloud.run(script, *options))
    assert f"the workdir '{workdir}' is on it" in message
    name = bucket or "BUCKET"
    assert f"give, after --, --workdir=gs://{name}/DIR, or" in message
    assert message.endswith(f"--bucket={name} and --workdir=/mnt/{name}/DIR")
    assert cloud.calls() == []


def test_config_must_be_committed(cloud: Cloud, checkout: Path) -> None:
    (checkout / "configs" / "mine.py").touch()
    result = cloud.run(VM, *PLACE, "--", "--config=configs/mine.py:demo")
    assert "is not in the last commit" in refused(result)


def test_missing_gcloud(cloud: Cloud, tmp_path: Path) -> None:
    path = without_program(cloud.environment(), ["gcloud"], tmp_path / "bin")
    result = cloud.run(VM, *PLACE, "--", CONFIG, PATH=path)
    assert "install the Google Cloud CLI: https://" in refused(result)
