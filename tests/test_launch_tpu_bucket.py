"""launch/tpu_vm.sh, tpu_queued.sh: the bucket, on hosts whose sudo and gcsfuse are stand-ins."""

import os

import pytest
from launching import CONFIG
from launching_tpu import PLACE, QUEUED, UP, VM, WORKDIR, Cloud


def test_every_host_mounts_the_bucket_once_before_the_start(cloud: Cloud) -> None:
    cloud.set(hosts=2)
    assert cloud.run(VM, *PLACE, "--", CONFIG, WORKDIR).returncode == 0
    result = cloud.run(VM, *PLACE, "--", CONFIG, WORKDIR)
    assert result.returncode == 0, result.stderr
    assert cloud.changes() == ["tpu-vm create", *UP, *UP]
    for host in ("host0", "host1"):
        home = cloud.root / "corm" / host
        assert (home / "mounts").read_text() == "/mnt/bucket\n"
        key = "/usr/share/keyrings/cloud.google.asc"
        repository = f"[signed-by={key}] https://packages.cloud.google.com/apt gcsfuse-jammy main"
        assert (home / "written").read_text() == (
            f"{key}: key\n/etc/apt/sources.list.d/gcsfuse.list: deb {repository}\n"
        )
    assert result.stdout.count("/mnt/bucket is mounted already") == 2
    mounts = cloud.calls("gcsfuse")
    assert mounts == [mounts[0]] * 2
    assert mounts[0][1:3] == ["--implicit-dirs", "--rename-dir-limit=100000"]
    assert mounts[0][-2:] == ["bucket", "/mnt/bucket"]
    owner = f"{os.getuid()}:{os.getgid()}"
    rest = [call[1:] for call in cloud.calls("sudo") if call[1] not in ("tee", "env")]
    made = [["mkdir", "-p", "/mnt/bucket"], ["chown", owner, "/mnt/bucket"]]
    assert sorted(rest) == sorted(made * 2)
    assert cloud.calls("curl")[0][-1] == "https://packages.cloud.google.com/apt/doc/apt-key.gpg"


@pytest.mark.parametrize("script", [VM, QUEUED])
def test_nothing_starts_where_the_bucket_cannot_be_mounted(cloud: Cloud, script: str) -> None:
    cloud.set()
    result = cloud.run(script, *PLACE, "--", CONFIG, WORKDIR, FAIL="gcsfuse")
    assert result.returncode == 1
    assert "403: storage.objects.list denied" in result.stderr
    assert "bucket was not mounted on every host" in result.stderr
    assert "roles/storage.objectUser" in result.stderr
    assert cloud.changes()[-1] == "tpu-vm ssh mount"
    assert cloud.runs() == []


def test_without_a_bucket_nothing_is_mounted(cloud: Cloud) -> None:
    cloud.set()
    options = [option for option in PLACE if not option.startswith("--bucket")]
    assert cloud.run(VM, *options, "--", CONFIG).returncode == 0
    assert cloud.changes() == ["tpu-vm create", *UP[:2], *UP[3:]]
    assert cloud.calls("gcsfuse") == cloud.calls("sudo") == []


@pytest.mark.parametrize("script", [VM, QUEUED])
def test_a_run_in_a_bucket_needs_no_mount_and_its_buckets_are_checked(
    cloud: Cloud, script: str
) -> None:
    cloud.set()
    options = [option for option in PLACE if not option.startswith("--bucket")]
    flags = [CONFIG, "--workdir=gs://bucket/a b", "--config.data.data_dir=gs://bucket/data"]
    result = cloud.run(script, *options, "--delete=success", "--", *flags)
    assert result.returncode == 0, result.stderr
    assert cloud.commands().count("describe gs://bucket") == 1
    assert "tpu-vm ssh mount" not in cloud.changes()
    assert cloud.runs() == [flags]
    assert cloud.world["slices"] == {}
