"""launch/gke/: the manifest by PyYAML and Kubernetes' rules, the script against a fake kubectl."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from launching import AWKWARD, CONFIG, LAUNCH, Machine, refused, without_program

SCRIPT = "gke/launch.sh"
# Fails for commands with the words of FAIL; keeps what is created, and knows the JobSet EXISTING.
KUBECTL = """\
import os, pathlib, sys
words = " ".join(word for word in sys.argv[1:] if not word.startswith("--"))
if os.environ.get("FAIL") and os.environ["FAIL"] in " ".join(sys.argv):
    sys.exit("Error from server (Forbidden): " + words)
if words.startswith("create"):
    kind = "validated" if "--dry-run=server" in sys.argv else "created"
    pathlib.Path(os.environ["HOME"], kind).write_text(sys.stdin.read())
elif words == "config current-context":
    print("some-cluster")
elif words == "get nodes":
    print("node/1")
elif words.startswith("get jobset") and words.endswith(os.environ.get("EXISTING", "?")):
    print("jobset.jobset.x-k8s.io/" + os.environ["EXISTING"])
"""
WORKDIR = "--workdir=/data/run"
TPU = [
    "--name=corm",
    "--image=registry.example/corm:tpu",
    "--accelerator=tpu-v5-lite-podslice",
    "--topology=4x4",
    "--hosts=4",
    "--chips=4",
    "--claim=disk",
]
GPU = [
    *("--name=corm", "--image=corm:gpu", "--claim=disk"),
    *("--accelerator=nvidia-h100-80gb", "--hosts=2", "--chips=8"),
]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    machine = Machine(tmp_path / "machine")
    machine.add("kubectl", KUBECTL)
    return machine


def created(machine: Machine) -> dict:
    text = (machine.home / "created").read_text()
    assert (machine.home / "validated").read_text() == text
    return yaml.safe_load(text)


def expand(word: str, environment: dict[str, str]) -> str:
    """Expands as Kubernetes does: $$ is $, $(NAME) a variable that exists."""
    return re.sub(
        r"\$(\$|\((.*?)\))",
        lambda m: "$" if m[1] == "$" else environment.get(m[2], m[0]),
        word,
    )


def pod(manifest: dict) -> dict:
    [job] = manifest["spec"]["replicatedJobs"]
    return job["template"]["spec"]["template"]["spec"]


def test_tpu_manifest(machine: Machine) -> None:
    result = machine.run(
        SCRIPT, *TPU, "--spot", "--namespace=team", "--context=a b", "--", *AWKWARD, WORKDIR
    )
    assert result.returncode == 0, result.stderr
    manifest = created(machine)
    assert manifest["kind"] == "JobSet"
    assert manifest["metadata"] == {
        "name": "corm",
        "namespace": "team",
        "annotations": {
            "alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"
        },
    }
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    assert (job["parallelism"], job["completions"], job["backoffLimit"]) == (4, 4, 0)
    assert pod(manifest)["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
        "cloud.google.com/gke-spot": "true",
    }
    assert pod(manifest)["tolerations"][0]["key"] == "cloud.google.com/gke-spot"
    [container] = pod(manifest)["containers"]
    assert container["resources"] == {"limits": {"google.com/tpu": "4"}}
    command = [expand(word, {"PATH": "/usr/bin", "HOME": "/"}) for word in container["command"]]
    assert command == ["python", "-m", "corm_jax.main", "--distributed", *AWKWARD, WORKDIR]

    kubectl = ["kubectl", "--context=a b", "--namespace=team"]
    selector = (
        "--selector=cloud.google.com/gke-tpu-accelerator=tpu-v5-lite-podslice,"
        "cloud.google.com/gke-tpu-topology=4x4,cloud.google.com/gke-spot=true"
    )
    assert machine.calls("kubectl") == [
        [*kubectl, "get", "crd", "jobsets.jobset.x-k8s.io", "--output=name"],
        [*kubectl, "get", "namespace", "team", "--output=name"],
        [*kubectl, "get", "persistentvolumeclaim", "disk", "--output=name"],
        [*kubectl, "get", "jobset", "corm", "--ignore-not-found", "--output=name"],
        [*kubectl, "get", "nodes", "--output=name", selector],
        [*kubectl, "create", "--dry-run=server", "--filename=-"],
        [*kubectl, "create", "--filename=-"],
    ]


def test_gpu_manifest_names_coordinator_and_processes(machine: Machine) -> None:
    result = machine.run(SCRIPT, *GPU, "--", CONFIG, WORKDIR, "--config.a=$(HOME)")
    assert result.returncode == 0, result.stderr
    manifest = created(machine)
    assert manifest["metadata"]["annotations"] == {}
    assert pod(manifest)["nodeSelector"] == {"cloud.google.com/gke-accelerator": "nvidia-h100-80gb"}
    [container] = pod(manifest)["containers"]
    assert container["resources"] == {"limits": {"nvidia.com/gpu": "8"}}
    environment = {entry["name"]: entry for entry in container["env"]}
    # <JobSet>-<replicated job>-<job>-<pod>.<subdomain>, which is the JobSet's name
    name = manifest["spec"]["replicatedJobs"][0]["name"]
    assert environment["CORM_COORDINATOR"]["value"] == f"corm-{name}-0-0.corm:8476"
    assert environment["CORM_NUM_PROCESSES"]["value"] == "2"
    assert environment["CORM_PROCESS_ID"]["valueFrom"]["fieldRef"]["fieldPath"] == (
        "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    )
    assert container["volumeMounts"] == [{"name": "data", "mountPath": "/data"}]
    assert pod(manifest)["volumes"] == [
        {"name": "data", "persistentVolumeClaim": {"claimName": "disk"}}
    ]
    assert "--distributed" not in container["command"]


@pytest.mark.parametrize(
    ("options", "annotations"), [([], {}), (["--fuse"], {"gke-gcsfuse/volumes": "true"})]
)
def test_claim_of_a_bucket_is_mounted_by_a_container_that_gke_adds(
    machine: Machine, options: list[str], annotations: dict[str, str]
) -> None:
    assert machine.run(SCRIPT, *TPU, *options, "--", CONFIG, WORKDIR).returncode == 0
    [job] = created(machine)["spec"]["replicatedJobs"]
    template = job["template"]["spec"]["template"]
    assert template["metadata"] == {"annotations": annotations}


def test_a_run_in_a_bucket_needs_no_claim(machine: Machine) -> None:
    options = [option for option in TPU if not option.startswith("--claim")]
    result = machine.run(SCRIPT, *options, "--", CONFIG, "--workdir=gs://bucket/run")
    assert result.returncode == 0, result.stderr
    assert pod(created(machine))["volumes"] == []
    assert pod(created(machine))["containers"][0]["volumeMounts"] == []
    assert not [call for call in machine.calls("kubectl") if "persistentvolumeclaim" in call]


def outcome(manifest: dict, *, code: int | None = None, condition: str | None = None) -> str:
    """Returns what JobSet does after a pod's end, by Kubernetes' documented rules."""
    job = manifest["spec"]["replicatedJobs"][0]["template"]["spec"]
    reason = "BackoffLimitExceeded"  # backoffLimit is 0
    for rule in job["podFailurePolicy"]["rules"]:
        codes = rule.get("onExitCodes", {"values": []})["values"]
        conditions = [entry["type"] for entry in rule.get("onPodConditions", [])]
        if code in codes or condition in conditions:
            assert rule["action"] == "FailJob"
            reason = "PodFailurePolicy"
            break
    for rule in manifest["spec"]["failurePolicy"]["rules"]:
        if reason in rule.get("onJobFailureReasons", [reason]):
            return rule["action"]
    return "RestartJobSet"


def test_restarts_on_preemption_but_not_on_an_error(machine: Machine) -> None:
    machine.run(SCRIPT, *TPU, "--max-restarts=7", "--", CONFIG, WORKDIR)
    manifest = created(machine)
    assert outcome(manifest, code=75) == "RestartJobSet"
    assert outcome(manifest, condition="DisruptionTarget") == "RestartJobSet"
    assert outcome(manifest, code=1) == "FailJobSet"
    assert manifest["spec"]["failurePolicy"]["maxRestarts"] == 7
    assert pod(manifest)["restartPolicy"] == "Never"  # podFailurePolicy needs it


def test_dry_run_prints_what_is_run(machine: Machine) -> None:
    arguments = [*TPU, "--", *AWKWARD, WORKDIR]
    printed = machine.run(SCRIPT, "--dry-run", *arguments)
    assert printed.returncode == 0, printed.stderr
    assert machine.calls() == []
    script = machine.home / "script.sh"
    script.write_text(printed.stdout)
    subprocess.run(
        ["bash", "-e", script], env=machine.environment(), check=True, stdout=subprocess.DEVNULL
    )
    by_script, manifest = machine.calls(), (machine.home / "created").read_text()
    machine.record.unlink()
    assert machine.run(SCRIPT, *arguments).returncode == 0
    assert machine.calls() == by_script
    assert (machine.home / "created").read_text() == manifest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"--name": "Corm"}, "--name must be of small letters"),
        ({"--name": "c" * 41}, "at most 40 characters, not 41"),
        ({"--namespace": "a b"}, "--namespace must be of small letters"),
        ({"--image": "a b"}, "--image has a space"),
        ({"--image": None}, "--image is missing (or the environment variable LAUNCH_IMAGE)"),
        ({"--accelerator": "v5e"}, "--accelerator must start with tpu- or nvidia-"),
        ({"--accelerator": "nvidia-l4"}, "--topology is for TPUs"),
        ({"--topology": "4"}, "--topology must be such as 4x4"),
        ({"--topology": "4x8"}, "a 4x8 slice has 32 chips, and 4 hosts with 4 have 16"),
        ({"--hosts": "0"}, "--hosts must be a whole number from 1"),
        ({"--": "--workdir=runs/x"}, "a pod's disk goes with it"),
        ({"--": "--workdir=/data"}, "a pod's disk goes with it"),
        ({"--": "--workdir=/data/../x"}, "a pod's disk goes with it"),
        ({"--": "--config.data.folder=gs://bucket/x"}, "mount the bucket where it runs"),
        ({"--claim": None}, "a pod's disk goes with it"),
        ({"--claim": None, "--fuse": "true", "--": "--workdir=gs://b/x"}, "name it: --claim=NAME"),
        ({"--claim": "a b"}, "--claim must be of small letters"),
        ({"--fuse": "yes"}, "--fuse must be one of: true false; not 'yes'"),
        ({"EXISTING": "corm"}, "JobSet corm exists"),
        ({"FAIL": "current-context"}, "gcloud container clusters get-credentials"),
        ({"FAIL": "get crd"}, "has no JobSet"),
        ({"FAIL": "get namespace"}, "namespace default cannot be used"),
        ({"FAIL": "get persistentvolumeclaim"}, "the claim disk cannot be used"),
        ({"FAIL": "dry-run=server"}, "the cluster refuses the manifest"),
    ],
)
def test_refused_before_anything_is_created(
    machine: Machine, change: dict[str, str | None], message: str
) -> None:
    options = dict(option.split("=", 1) for option in TPU)
    options |= {key: value for key, value in change.items() if key.startswith("--")}
    flag = options.pop("--", WORKDIR)
    variables = {key: value or "" for key, value in change.items() if not key.startswith("--")}
    values = [f"{key}={value}" for key, value in options.items() if value is not None]
    result = machine.run(SCRIPT, *values, "--", CONFIG, flag, **variables)
    assert message in refused(result, first=False)
    if "FAIL" in variables:
        assert "Error from server (Forbidden)" in result.stderr
    assert not (machine.home / "created").exists()


def test_hints_at_the_end_are_commands(machine: Machine) -> None:
    result = machine.run(SCRIPT, *TPU, "--context=a b", "--", CONFIG, WORKDIR)
    hints = [shlex.split(line.split(": ", 1)[1]) for line in result.stderr.splitlines()[-3:]]
    assert [hint[3] for hint in hints] == ["logs", "get", "delete"]
    assert hints[0][1] == "--context=a b"


def test_missing_kubectl(machine: Machine, tmp_path: Path) -> None:
    path = without_program(machine.environment(), ["kubectl"], tmp_path / "bin")
    message = refused(machine.run(SCRIPT, *TPU, "--", CONFIG, WORKDIR, PATH=path))
    assert "kubectl is not installed here" in message


def test_manifest_with_a_missing_value(tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.yaml"
    manifest.write_text("a: $a\nb: $b\n")
    fill = [sys.executable, LAUNCH / "gke" / "fill.py", manifest]
    environment = {**os.environ, "PYTHONPATH": ""}
    filled = subprocess.run(
        [*fill, "a=x: y\n- $b", "b:=[1]"],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    ).stdout
    assert yaml.safe_load(filled) == {"a": "x: y\n- $b", "b": [1]}
    missing = subprocess.run([*fill, "a=1"], capture_output=True, text=True, check=False)
    assert missing.returncode == 1
    assert "KeyError: 'b'" in missing.stderr
