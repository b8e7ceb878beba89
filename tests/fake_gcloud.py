"""A Google Cloud of one zone in a directory: body of the program `gcloud` of a test's Machine.

Hosts of a slice are directories that serve as home directories, and their bin/ comes first on PATH;
--command runs there in a real shell, after gcloud's own splitting at spaces. `world.json` holds the
state and what goes wrong:

  hosts       of a slice, 1
  refuse      words of commands that fail, with the message
  fates       for each `follow`: "ok"; "break" (the connection breaks, the run goes on);
              "preempt" (the slice is taken away, with the connection)
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(os.environ["FAKE_CLOUD"])
WORLD = ROOT / "world.json"
OFFERS = {
    "compute tpus locations list": ["us-central1-a", "us-central2-b"],
    "compute tpus tpu-vm accelerator-types list": ["v4-8", "v4-16"],
    "compute tpus tpu-vm versions list": ["tpu-ubuntu2204-base"],
}


def load() -> dict:
    return {"hosts": 1, "refuse": {}, "fates": [], "slices": {}, "requests": {}} | (
        json.loads(WORLD.read_text()) if WORLD.exists() else {}
    )


def save(world: dict) -> None:
    WORLD.write_text(json.dumps(world))


def fail(message: str, code: int = 1) -> None:
    print(f"ERROR: (gcloud) {message}", file=sys.stderr)
    sys.exit(code)


def homes(world: dict, name: str, workers: str = "all") -> list[Path]:
    chosen = range(world["hosts"]) if workers == "all" else [int(workers)]
    return [ROOT / name / f"host{host}" for host in chosen]


def make_slice(world: dict, name: str, kind: str) -> None:
    for home in homes(world, name):
        home.mkdir(parents=True)
    world["slices"][name] = ["READY", kind]


def remove_slice(world: dict, name: str) -> None:
    world["slices"].pop(name, None)
    for home in homes(world, name):
        pid = home / "corm_jax_run" / "pid"
        if pid.exists():
            subprocess.run(["kill", "-KILL", "--", f"-{pid.read_text().strip()}"], check=False)
    subprocess.run(["rm", "-rf", ROOT / name], check=True)


def on_hosts(world: dict, name: str, flags: dict) -> int:
    """Returns what gcloud does: the code of the first host that failed."""
    command = flags["command"].split(" ")  # so does gcloud, and ssh joins the words again
    processes = [
        subprocess.Popen(
            ["bash", "-c", " ".join(command)],
            cwd=home,
            env=os.environ | {"HOME": str(home), "PATH": f"{home}/bin:{os.environ['PATH']}"},
        )
        for home in homes(world, name, flags["worker"])
    ]
    codes = [process.wait() for process in processes]
    return next((code for code in codes if code), 0)


def ssh(world: dict, name: str, flags: dict) -> None:
    if world["slices"].get(name, [""])[0] != "READY":
        fail(f"{name} is not there", 255)
    fate = "ok"
    if flags["command"].endswith("follow") and world["fates"]:
        fate = world["fates"].pop(0)
        save(world)
    if fate == "break":
        sys.exit(255)
    if fate == "preempt":
        remove_slice(world, name)
        if name in world["requests"]:
            world["requests"][name] = "SUSPENDED"
        save(world)
        sys.exit(255)
    sys.exit(on_hosts(world, name, flags))


def main() -> None:
    flags, words = {}, []
    for argument in sys.argv[1:]:
        if argument.startswith("--"):
            key, _, value = argument[2:].partition("=")
            flags[key] = value
        else:
            words.append(argument)
    world = load()
    command = " ".join(words)
    for refused, message in world["refuse"].items():
        if command.startswith(refused):
            fail(message)
    if command in OFFERS:
        print("\n".join(OFFERS[command]))
    elif command == "auth list":
        print(world.get("account", "somebody@example.com"))
    elif command.startswith("storage buckets describe"):
        if words[-1] != "gs://bucket":
            fail(f"{words[-1]} not found: 404.")
        print("bucket")
    elif command == "compute tpus tpu-vm list":
        for name, (state, kind) in world["slices"].items():
            print(f"{name}\t{state}\t{kind}")
    elif command == "compute tpus queued-resources list":
        for name, state in world["requests"].items():
            print(f"{name}\t{state}")
    elif command.startswith("compute tpus tpu-vm create"):
        make_slice(world, words[-1], flags["accelerator-type"])
    elif command.startswith("compute tpus tpu-vm delete"):
        remove_slice(world, words[-1])
    elif command.startswith("compute tpus queued-resources create"):
        world["requests"][words[-1]] = "ACTIVE"
        make_slice(world, flags["node-id"], flags["accelerator-type"])
    elif command.startswith("compute tpus queued-resources delete"):
        del world["requests"][words[-1]]
        remove_slice(world, words[-1])
    elif command.startswith("compute tpus queued-resources describe"):
        print("error: no such capacity")
    elif command.startswith("compute tpus tpu-vm scp"):
        name, _, target = words[-1].partition(":")
        for home in homes(world, name, flags["worker"]):
            (home / target).write_bytes(Path(words[-2]).read_bytes())
    elif command.startswith("compute tpus tpu-vm ssh"):
        ssh(world, words[4], flags)
    else:
        fail(f"Invalid choice: {command!r}", 2)
    save(world)


main()
