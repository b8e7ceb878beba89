#!/usr/bin/env bash
# Trains on Cloud TPU capacity that it queues for, and goes on after every preemption.
set -euo pipefail
# shellcheck source=launch/tpu.sh
source "$(dirname "${BASH_SOURCE[0]}")/tpu.sh"

usage() {
    cat <<'END'
usage: launch/tpu_queued.sh --name=NAME --project=PROJECT --zone=ZONE --accelerator-type=TYPE
                            --runtime-version=VERSION [OPTION ...]
                            -- --workdir=gs://BUCKET/DIR FLAGS OF corm_jax.main

Requests a Cloud TPU slice as a queued resource and waits for it; then does what launch/tpu_vm.sh
does. When the slice is taken away, or the program exits with 75, it requests a new one where need
be and starts again: the program goes on from its last checkpoint, so --workdir must be in a
bucket. Any other exit code ends it. The same command goes on after Ctrl-C.

END
    shared_options
    cat <<'END'
  --spot                     spot capacity, the default; --spot=false for on-demand capacity

example: launch/tpu_queued.sh --name=corm --project=PROJECT --zone=us-central2-b --accelerator-type=v4-32 \
    --runtime-version=tpu-ubuntu2204-base --delete=success \
    -- --config=configs/vit_corm.py:imagenet --workdir=gs://BUCKET/corm
END
}

option[spot]=true
parse_options "$@"
check_tpu_options
check_flags
check_workdir
check_cloud

queued=(gcloud compute tpus queued-resources)
remove=("${queued[@]}" delete "$name" "${place[@]}" --force --quiet)

# Prints the state of the request; nothing where there is none.
request_state() {
    local rows
    rows=$(query "${queued[@]}" list "${place[@]}" '--format=value(name.basename(),state.state)') || return
    awk -v name="$name" '$1 == name { print $2 }' <<<"$rows"
}

request() {
    local create=("${queued[@]}" create "$name" --node-id="$name" "${place[@]}"
        --accelerator-type="${option[accelerator-type]}" --runtime-version="${option[runtime-version]}")
    ! ${option[spot]} || create+=(--spot)
    run "${create[@]}" "${create_flags[@]}" || die "the slice was not requested; gcloud's message stands above." \
        "Without quota: https://console.cloud.google.com/iam-admin/quotas"
    delete_command=("${remove[@]}")
    installed=false
}

remove_request() {
    run "${remove[@]}" && delete_command=()
}

# Waits until the slice is there; requests it where it was not, or was taken away.
acquire() {
    local state slice before=new
    while true; do
        state=$(patiently request_state)
        if $dry_run; then
            state=$pretended
            pretended=ACTIVE
        fi
        [[ $state == "$before" ]] || say "the request for $name: ${state:-not made yet}"
        before=$state
        [[ -z $state ]] || delete_command=("${remove[@]}")
        case $state in
            '')
                request
                continue
                ;;
            ACTIVE)
                slice=$(patiently slice_state)
                case $slice in
                    READY*) return ;;
                    PREEMPTED* | TERMINATED*) remove_request || true ;;
                    *) ! $dry_run || return 0 ;;
                esac
                ;;
            SUSPENDED) remove_request || true ;;
            FAILED)
                run "${queued[@]}" describe "$name" "${place[@]}" || true
                die "the request failed; its description stands above. Remove it before the next: $(quote "${remove[@]}")"
                ;;
        esac
        pause
    done
}

# Installs and runs to the end of the run, of the slice or of the connection.
attempt() {
    if ! $installed; then
        install_code || return
        installed=true
    elif $restarting; then
        remote all "$(worker stop)" || return
    fi
    restarting=true
    start_run || return
    follow_run
}

# True if the request or the slice is not what a run needs.
taken_away() {
    [[ $(patiently request_state) != ACTIVE || $(patiently slice_state) != READY* ]]
}

request_state >/dev/null || die "cannot list the queued resources; gcloud's message stands above"
pretended='' # what --dry-run takes for the state of the request
installed=false
restarting=false
restarts=0
while true; do
    acquire
    code=0
    attempt || code=$?
    ((code)) || exit 0
    # 255: the connection broke for good, which after a preemption is how the end of a slice shows.
    if ((code != PREEMPTED && !(code == 255 && restarts))) && ! taken_away; then
        say "it ended with code $code on a slice in good order: no restart"
        exit "$code"
    fi
    ((restarts < option[max-restarts])) || die "preempted again after $restarts restarts, all that --max-restarts allows"
    restarts=$((restarts + 1))
    say "preempted (code $code); restart $restarts of at most ${option[max-restarts]}"
    pause
done
