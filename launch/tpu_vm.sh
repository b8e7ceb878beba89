#!/usr/bin/env bash
# Trains on a Cloud TPU slice, which it creates or finds.
set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
    cat <<'END'
usage: launch/tpu_vm.sh --name=NAME --project=PROJECT --zone=ZONE --accelerator-type=TYPE
                        --runtime-version=VERSION [OPTION ...] -- FLAGS OF corm_jax.main

Creates a Cloud TPU slice, or uses that of this name; installs this checkout on all its hosts;
runs `python -m corm_jax.main --distributed FLAGS` on all, and prints their log. The run outlives
this command: after Ctrl-C the same command follows it again. Exits with the code of the run.

END
    shared_options
    cat <<'END'
  --spot                     a cheaper slice that may be taken away; launch/tpu_queued.sh replaces it

example: launch/tpu_vm.sh --name=corm --project=PROJECT --zone=us-central2-b --accelerator-type=v4-8 \
    --runtime-version=tpu-ubuntu2204-base --delete=success \
    -- --config=configs/vit_corm.py:imagenet --workdir=gs://BUCKET/corm
END
}

parse_options "$@"
check_tpu_options
check_flags
[[ ${option[delete]} == never ]] || check_workdir
check_cloud

state=$(slice_state) || die "cannot list the slices; gcloud's message stands above"
remove=(gcloud compute tpus tpu-vm delete "$name" "${place[@]}" --quiet)
case $state in
    '')
        create=(gcloud compute tpus tpu-vm create "$name" "${place[@]}"
            --accelerator-type="${option[accelerator-type]}" --version="${option[runtime-version]}")
        ! ${option[spot]} || create+=(--spot)
        run "${create[@]}" "${create_flags[@]}" || die "the slice was not created; gcloud's message stands above." \
            "Without quota: https://console.cloud.google.com/iam-admin/quotas. Without capacity: another zone, or launch/tpu_queued.sh, which waits for it"
        ;;
    'READY ' | "READY ${option[accelerator-type]}") say "uses the slice $name that exists" ;;
    READY*) die "$name exists as a ${state#READY }; choose another --name or --accelerator-type=${state#READY }" ;;
    *) die "$name exists and is ${state% *}; wait until it is READY, or delete it: $(quote "${remove[@]}")" ;;
esac
delete_command=("${remove[@]}")

# Runs to the end or to the next preemption. Hosts that still run from before are stopped first.
attempt() {
    if $restarting; then
        state=$(patiently slice_state)
        if [[ $state != READY* ]]; then
            say "the slice was taken away; delete it and start again, or use launch/tpu_queued.sh, which does"
            option[max-restarts]=0
            return "$PREEMPTED"
        fi
        remote all "$(worker stop)" || return
    fi
    restarting=true
    start_run || return
    follow_run
}

install_code || die "the code was not installed on $name; the messages stand above." \
    "For a slice of several hosts gcloud needs the key in an agent: ssh-add ~/.ssh/google_compute_engine"
restarting=false
code=0
restart_while_preempted attempt || code=$?
exit "$code"
