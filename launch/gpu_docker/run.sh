#!/usr/bin/env bash
# Builds the image of this checkout and trains in it, on this machine's GPUs.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

usage() {
    cat <<'END'
usage: launch/gpu_docker/run.sh [OPTION ...] -- FLAGS OF corm_jax.main

Builds the image of launch/gpu_docker/Dockerfile and runs `python -m corm_jax.main FLAGS` in it, as
the user who calls. Needs NVIDIA's driver and container toolkit. Ctrl-C and SIGTERM are passed on.
Exits with the code of the run.

  --image=NAME:TAG            (corm_jax:gpu)
  --extra=EXTRA               gpu, or tpu for an image that launch/gke/launch.sh runs (gpu)
  --build=false               use the image as it is
  --run=false                 build alone, such as before docker push; needs no flags
  --gpus=GPUS                 as docker takes it; none: without GPUs (all)
  --volume=HOST:CONTAINER     a directory of this machine; may be repeated. Without one ./runs and
                              ./data of the checkout are /corm_jax/runs and /corm_jax/data
                              (--workdir=gs://BUCKET/DIR needs none; the container is given the
                              file of GOOGLE_APPLICATION_CREDENTIALS, or gcloud's, to read)
  --max-restarts=N            how often to restart what exits with 75, preempted at a checkpoint (0)
  --dry-run                   print the commands, run none

Each option can stand in the environment instead: LAUNCH_IMAGE=..., LAUNCH_MAX_RESTARTS=1.

example: launch/gpu_docker/run.sh --volume=/disk/pets:/pets:ro --volume=/disk/runs:/runs \
    -- --config=configs/vit_corm.py:folder --config.data.folder=/pets --workdir=/runs/pets
END
}

option=([image]=corm_jax:gpu [extra]=gpu [build]=true [run]=true [gpus]=all [max-restarts]=0)
# shellcheck disable=SC2034 # read by parse_options
repeatable=([volume]=1)
volumes=()
parse_options "$@"
require image gpus
require_choice extra gpu tpu
require_choice build true false
require_choice run true false
require_number 0 max-restarts
if ${option[run]}; then
    check_flags
    defaults=false
    if ((${#volumes[@]} == 0)); then
        defaults=true
        volumes=("$repository/runs:/corm_jax/runs" "$repository/data:/corm_jax/data")
    fi
    mounts=()
    kept=false
    workdir=$(flag_value workdir)
    workdir=${workdir:-runs}
    if [[ $workdir == gs://* ]]; then
        kept=true
    elif [[ $workdir != /* ]]; then
        workdir=/corm_jax/$workdir
    fi
    for volume in "${volumes[@]}"; do
        IFS=: read -r host container _ <<<"$volume"
        [[ $host == /* && $container == /* ]] ||
            die "--volume must be HOST:CONTAINER, two absolute paths, not '$volume'"
        # docker would make it, as root's.
        $defaults || [[ -e $host ]] || die "--volume: $host does not exist on this machine"
        [[ $workdir/ != "${container%/}"/* ]] || kept=true
        mounts+=(--volume="$volume")
    done
    $kept || die "the workdir $workdir would go with the container; mount a directory there: --volume=HOST:$workdir"
fi
require_command docker "install Docker, and NVIDIA's container toolkit: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit"
query docker version '--format={{.Server.Version}}' >/dev/null ||
    die "docker does not answer; its message stands above. Is the daemon on, and are you in the group docker?"

if ${option[build]}; then
    run docker build --file="$repository/launch/gpu_docker/Dockerfile" --build-arg=EXTRA="${option[extra]}" \
        --tag="${option[image]}" "$repository" || die "the image was not built; docker's message stands above"
fi
${option[run]} || exit 0

# The caller has no entry in the container's list of users: libraries that ask get these.
command=(docker run --rm --init --stop-timeout=300 --user="$(id -u):$(id -g)" --env=HOME=/tmp
    --env=USER="$(id -un)")
[[ ${option[gpus]} == none ]] || command+=(--gpus="${option[gpus]}")
credentials=${GOOGLE_APPLICATION_CREDENTIALS:-$HOME/.config/gcloud/application_default_credentials.json}
# On a machine of Google Cloud there may be no file, and none is needed.
if ((${#buckets[@]})) && [[ -f $credentials ]]; then
    mounts+=(--volume="$credentials:/tmp/credentials.json:ro"
        --env=GOOGLE_APPLICATION_CREDENTIALS=/tmp/credentials.json)
fi
command+=("${mounts[@]}" "${option[image]}" "${flags[@]}")
! $defaults || run mkdir -p "$repository/runs" "$repository/data"

# docker passes signals on to the container; what it is sent here is not restarted.
child=0
stop() {
    option[max-restarts]=0
    ((child == 0)) || kill -s "$1" -- "-$child" 2>/dev/null || true
}
trap 'stop INT' INT
trap 'stop TERM' TERM HUP

attempt() {
    if $dry_run; then
        run "${command[@]}"
        return
    fi
    printf '+ %s\n' "$(quote "${command[@]}")" >&2
    set -m # a process group of its own, with the usual meaning of signals
    "${command[@]}" </dev/null &
    child=$!
    set +m
    local code=0
    wait "$child" || code=$?
    # A signal to this script ends `wait` early.
    while kill -0 "$child" 2>/dev/null; do
        code=0
        wait "$child" || code=$?
    done
    return "$code"
}

code=0
restart_while_preempted attempt || code=$?
exit "$code"
