#!/usr/bin/env bash
# On each host of a TPU slice: installs the code, mounts a bucket, and runs the code so that it
# outlives the connection. tpu_vm.sh and tpu_queued.sh upload it with the code and call it by ssh.
set -euo pipefail

usage() {
    cat <<'END'
usage: bash corm_jax/launch/tpu_worker.sh install | mount BUCKET | start -- FLAGS | follow | result | stop | --help

  install    makes .venv beside launch/ with this code and jax for TPUs; nothing where that is done
  mount      mounts a bucket of Cloud Storage as /mnt/BUCKET; nothing where that is done
  start      starts `python -m corm_jax.main --distributed FLAGS` in the background; nothing where
             it runs already with the same flags
  follow     prints the log until the run ends, and exits with its code
  result     prints "running", "none" or the code of the run that ended
  stop       sends SIGTERM, on which the program saves a checkpoint, and waits for the end

It keeps command, process id, log and exit code in ~/corm_jax_run.
END
}

code=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
run=$HOME/corm_jax_run
grace=300 # seconds from SIGTERM to SIGKILL
preempted=75
busy=69 # EX_UNAVAILABLE

die() {
    printf 'error: %s: %s\n' "$(hostname)" "$*" >&2
    exit 1
}

# True while the run goes on. Process ids come back after a reboot: the name is checked too.
is_running() {
    [[ -f $run/pid ]] && grep -qaF tpu_worker.sh "/proc/$(<"$run/pid")/cmdline" 2>/dev/null
}

install() {
    cd "$code"
    if cmp -s setup.cfg .venv/installed; then
        echo "$(hostname): installed already"
        return
    fi
    rm -rf .venv
    # Ubuntu 22.04, which most TPU runtimes are, has Python 3.10; uv fetches a newer one.
    if ! python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || ! python3 -m venv .venv; then
        rm -rf .venv
        python3 -m pip install --quiet --disable-pip-version-check --user uv
        python3 -m uv venv --quiet --seed --python 3.12 .venv
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[tpu,gcs]'
    cp setup.cfg .venv/installed
    echo "$(hostname): installed"
}

# Google's package, from its repository for this release of Debian or Ubuntu:
# https://cloud.google.com/storage/docs/cloud-storage-fuse/install
install_gcsfuse() {
    local url=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc release
    # While a new host installs its updates, apt is locked.
    local apt=(sudo env DEBIAN_FRONTEND=noninteractive apt-get --quiet=2 --option=DPkg::Lock::Timeout=300)
    release=$(lsb_release --codename --short)
    curl --fail --silent --show-error --location "$url/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $url gcsfuse-$release main" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    "${apt[@]}" update
    "${apt[@]}" install --yes gcsfuse
}

mount() {
    [[ -n ${1-} ]] || die "the name of a bucket stands after: mount BUCKET"
    local target=/mnt/$1
    if mountpoint -q "$target"; then
        echo "$(hostname): $target is mounted already"
        return
    fi
    command -v gcsfuse >/dev/null || install_gcsfuse
    sudo mkdir -p "$target"
    sudo chown "$(id -u):$(id -g)" "$target"
    # A checkpoint is a directory that is renamed once it is complete. The caches of metadata, which
    # on TPU machines never expire, are off: a host sees at once what another has written.
    gcsfuse --implicit-dirs --rename-dir-limit=100000 --metadata-cache-ttl-secs=0 \
        --metadata-cache-negative-ttl-secs=0 "$1" "$target"
    echo "$(hostname): mounted $1 as $target"
}

start() {
    [[ ${1-} == -- ]] || die "flags of the program stand after: start --"
    shift
    [[ -x $code/.venv/bin/python ]] || die "nothing is installed: run install first"
    mkdir -p "$run"
    printf '%s\0' "$@" >"$run/command.new"
    if is_running; then
        if ! cmp -s "$run/command" "$run/command.new"; then
            echo "$(hostname): a run with other flags goes on" >&2
            exit "$busy"
        fi
        echo "$(hostname): runs already"
        return
    fi
    rm -f "$run/status" "$run/followed"
    mv "$run/command.new" "$run/command"
    [[ ! -f $run/log ]] || mv "$run/log" "$run/log.before"
    : >"$run/log"
    # setsid: no terminal and no ssh session takes it along, and the group has one id.
    setsid bash "${BASH_SOURCE[0]}" supervise "$@" </dev/null >"$run/log" 2>&1 &
    echo "$!" >"$run/pid"
}

# Runs the program in the foreground and writes down how it ended. Signals are the program's to
# answer; this shell only waits.
supervise() {
    trap : TERM INT
    cd "$code"
    local status=0
    PYTHONUNBUFFERED=1 .venv/bin/python -m corm_jax.main --distributed "$@" || status=$?
    # ssh exits with 255 when the connection breaks, and gcloud then connects again.
    ((status != 255)) || status=254
    echo "$status" >"$run/status.new"
    mv "$run/status.new" "$run/status"
}

result() {
    if is_running; then
        echo running
    elif [[ -f $run/status ]]; then
        cat "$run/status"
    elif [[ -f $run/pid ]]; then
        # Started, and neither running nor ended: the host was reset under it.
        echo "$preempted"
    else
        echo none
    fi
}

follow() {
    [[ -f $run/pid ]] || die "nothing was started"
    local from=+1
    # After a broken connection: a little of what was printed already.
    [[ ! -e $run/followed ]] || from=20
    touch "$run/followed"
    if is_running; then
        tail -n "$from" -s 0.5 -f --pid="$(<"$run/pid")" "$run/log"
    else
        tail -n "$from" "$run/log"
    fi | sed -u "s/^/[$(hostname)] /"
    exit "$(result)"
}

stop() {
    is_running || return 0
    local pid
    pid=$(<"$run/pid")
    kill -s TERM -- "-$pid"
    for ((second = 0; second < grace; second++)); do
        is_running || return 0
        sleep 1
    done
    echo "$(hostname): still running $grace seconds after SIGTERM: killed" >&2
    kill -s KILL -- "-$pid"
}

case ${1-} in
    install | follow | result | stop) "$1" ;;
    mount | start | supervise) "$@" ;;
    --help | -h) usage ;;
    *) die "unknown command '${1-}'; --help lists them" ;;
esac
