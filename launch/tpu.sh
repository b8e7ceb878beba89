# shellcheck shell=bash
# What tpu_vm.sh and tpu_queued.sh share; they source it.
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

# What tpu_worker.sh exits with where another run goes on.
readonly BUSY=69

# The options of both, with their defaults; tpu_vm.sh and tpu_queued.sh add their own.
option=([name]='' [project]='' [zone]='' [accelerator-type]='' [runtime-version]='' [bucket]=''
    [spot]=false [delete]=never [max-restarts]=100 [poll]=30)
# shellcheck disable=SC2034 # read by parse_options
repeatable=([create-flag]=1 [connect-flag]=1)
# shellcheck disable=SC2034 # read by tpu_vm.sh and tpu_queued.sh
create_flags=()
connect_flags=()

shared_options() {
    cat <<'END'
  --name=NAME                of the slice: small letters, digits and dashes
  --project=PROJECT          that is billed
  --zone=ZONE                such as us-central2-b: gcloud compute tpus locations list
  --accelerator-type=TYPE    such as v4-8 or v5litepod-16: gcloud compute tpus tpu-vm accelerator-types list
  --runtime-version=VERSION  such as tpu-ubuntu2204-base: gcloud compute tpus tpu-vm versions list
  --bucket=BUCKET            of Cloud Storage, by its name: every host mounts it as /mnt/BUCKET, for
                             folders of images and mask records; runs and TFDS data need no mount:
                             --workdir=gs://BUCKET/DIR --config.data.data_dir=gs://BUCKET/DIR
  --delete=WHEN              delete the slice at the end: never (the default), success, or always,
                             which includes errors and Ctrl-C; the disks go too, so that all but
                             never needs --workdir=gs://BUCKET/DIR, or /mnt/BUCKET/DIR with --bucket
  --max-restarts=N           how often to start what was preempted again (100)
  --poll=SECONDS             between two looks at a state (30)
  --create-flag=FLAG         passed to gcloud's create command; may be repeated
  --connect-flag=FLAG        passed to gcloud's ssh and scp, such as --internal-ip; may be repeated
  --dry-run                  print the commands, run none

Each option can stand in the environment instead: LAUNCH_ZONE=..., LAUNCH_ACCELERATOR_TYPE=...
Before anything is created, name, zone, accelerator type, runtime version, buckets and config file
are checked. What is uploaded is the last commit of this checkout. The slice's service account must
be allowed to read and write the buckets. Training in a bucket has not been tried on real hosts.
END
}

check_tpu_options() {
    require name project zone accelerator-type runtime-version
    require_choice delete never success always
    require_choice spot true false
    require_number 0 max-restarts poll
    name=${option[name]}
    place=(--zone="${option[zone]}" --project="${option[project]}")
    [[ $name =~ ^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$ ]] ||
        die "--name must be of at most 63 small letters, digits and dashes and start with a letter, not '$name'"
    [[ -z ${option[bucket]} || ${option[bucket]} =~ ^[a-z0-9][-a-z0-9._]{1,220}[a-z0-9]$ ]] ||
        die "--bucket must be the name of a bucket, without gs:// and without a directory, not '${option[bucket]}'"
}

# Refuses a run whose results would be lost with the disk of the slice.
check_workdir() {
    local bucket=${option[bucket]:-BUCKET} workdir
    workdir=$(flag_value workdir)
    [[ $workdir == gs://* || (-n ${option[bucket]} && $workdir == "/mnt/$bucket"/?* && $workdir/ != */../*) ]] ||
        die "the disk of the slice is deleted with it, and the workdir '$workdir' is on it; give, after --, --workdir=gs://$bucket/DIR, or --bucket=$bucket and --workdir=/mnt/$bucket/DIR"
}

# Refuses what would fail later and is known now; the commands only read.
check_cloud() {
    require_command gcloud "install the Google Cloud CLI: https://cloud.google.com/sdk/docs/install"
    require_command git "the last commit of this checkout is what runs on the slice"
    local account config
    config=$(flag_value config)
    git -C "$repository" cat-file -e "HEAD:${config%%:*}" 2>/dev/null ||
        die "config file ${config%%:*} is not in the last commit of $repository, which is what runs on the slice; commit it"
    [[ -z $(git -C "$repository" status --porcelain --untracked-files=no) ]] ||
        say "note: uncommitted changes stay here; the last commit is what runs on the slice"
    account=$(query gcloud auth list --filter=status:ACTIVE '--format=value(account)') ||
        die "gcloud cannot say who is logged in; its message stands above"
    $dry_run || [[ -n $account ]] || die "nobody is logged in to gcloud; run: gcloud auth login"
    check_offer zone locationId gcloud compute tpus locations list --project="${option[project]}"
    check_offer accelerator-type type gcloud compute tpus tpu-vm accelerator-types list "${place[@]}"
    check_offer runtime-version version gcloud compute tpus tpu-vm versions list "${place[@]}"
    check_buckets
}

# Those of --bucket and of flags, each once.
check_buckets() {
    local bucket
    local -A seen=()
    for bucket in ${option[bucket]:+"${option[bucket]}"} "${buckets[@]}"; do
        [[ ! -v "seen[$bucket]" ]] || continue
        seen[$bucket]=1
        bucket=gs://$bucket
        query gcloud storage buckets describe "$bucket" '--format=value(name)' >/dev/null ||
            die "bucket $bucket cannot be read; gcloud's message stands above." \
                "Create it with: gcloud storage buckets create $bucket --uniform-bucket-level-access --enable-hierarchical-namespace; or ask its owner for storage.buckets.get"
    done
}

# check_offer OPTION FIELD COMMAND...: refuses a value of OPTION that COMMAND does not list.
check_offer() {
    local value=${option[$1]} field=$2 what=$1 offers
    shift 2
    offers=$(query "$@" "--format=value($field)") ||
        die "cannot check --$what=$value; gcloud's message stands above"
    ! $dry_run || return 0
    grep -qxF -- "$value" <<<"$offers" ||
        die "--$what=$value is not offered to project ${option[project]}; there are: $(sort -u <<<"$offers" | paste -sd ' ')"
}

# Prints "STATE TYPE" of the slice; nothing where it does not exist.
slice_state() {
    local rows
    rows=$(query gcloud compute tpus tpu-vm list "${place[@]}" \
        '--format=value(name.basename(),state,acceleratorType.basename())') || return
    awk -v name="$name" '$1 == name { print $2, $3 }' <<<"$rows"
}

# remote WORKERS COMMAND: runs a line of shell on hosts of the slice.
remote() {
    run gcloud compute tpus tpu-vm ssh "$name" --worker="$1" "${place[@]}" "${connect_flags[@]}" \
        --command="$2"
}

# worker ARGUMENT...: the line of shell that calls tpu_worker.sh on a host.
worker() {
    quote bash corm_jax/launch/tpu_worker.sh "$@"
}

# On a host. The old environment is kept: it holds most of what takes time.
# shellcheck disable=SC2016 # expanded on the host
readonly unpack='if [ "$(bash corm_jax/launch/tpu_worker.sh result 2>/dev/null)" = running ]; then echo "a run goes on: its code stays"; else rm -rf corm_jax.new && mkdir corm_jax.new && tar -xzf corm_jax.tar.gz -C corm_jax.new && { [ ! -d corm_jax/.venv ] || mv corm_jax/.venv corm_jax.new/; } && rm -rf corm_jax && mv corm_jax.new corm_jax && bash corm_jax/launch/tpu_worker.sh install; fi'

# Uploads the last commit and installs it, unless a run goes on there.
install_code() {
    local code=0
    archive=$(cd "$repository" && git rev-parse --absolute-git-dir)/launch-$name.tar.gz
    run git -C "$repository" archive --format=tar.gz --output="$archive" HEAD || return
    run gcloud compute tpus tpu-vm scp "$archive" "$name:corm_jax.tar.gz" --worker=all \
        "${place[@]}" "${connect_flags[@]}" || code=$?
    run rm -f "$archive"
    ((code == 0)) || return "$code"
    remote all "$unpack"
}

# Before every start: a host that was reset has lost its mounts.
mount_bucket() {
    local code=0
    [[ -n ${option[bucket]} ]] || return 0
    remote all "$(worker mount "${option[bucket]}")" || code=$?
    ((code == 0)) || say "${option[bucket]} was not mounted on every host; the messages stand above." \
        "The slice's service account needs roles/storage.objectUser on it"
    return "$code"
}

# Starts the run on all hosts, or finds it running.
start_run() {
    local code=0
    mount_bucket || return
    remote all "$(worker start -- "${flags[@]}")" || code=$?
    if ((code == BUSY)); then
        delete_command=() # not ours to delete
        die "another run goes on there; end it: $(quote gcloud compute tpus tpu-vm ssh "$name" --worker=all "${place[@]}" --command="$(worker stop)")"
    fi
    return "$code"
}

# Follows the run to its end, again and again where only the connection broke; returns its code.
follow_run() {
    local code state
    while true; do
        code=0
        background remote all "$(worker follow)" || code=$?
        ((code != 0 && code != PREEMPTED)) || return "$code"
        # A host that is being taken away is not seen as such at once.
        pause
        state=$(patiently slice_state)
        [[ $state == READY* ]] || return "$code"
        [[ $(remote 0 "$(worker result)" || true) == *running* ]] || return "$code"
        say "the connection broke, the run goes on: following it again"
    done
}

# Repeats a query until gcloud answers: a launcher that has a run to look after does not give up.
patiently() {
    until "$@"; do
        say "gcloud did not answer; asking again in ${option[poll]} seconds"
        sleep "${option[poll]}"
    done
}

pause() {
    $dry_run || background sleep "${option[poll]}"
}

# Runs a command such that signals to this script are not held up until it ends. It stays in the
# process group of the terminal: ssh may have to ask for a passphrase there.
background() {
    if $dry_run; then
        "$@"
        return
    fi
    "$@" </dev/null &
    child=$!
    wait "$child"
}

# end_tree PROCESS: ends it and all that it started.
end_tree() {
    local pid
    for pid in $(pgrep -P "$1"); do end_tree "$pid"; done
    kill -s TERM "$1" 2>/dev/null || true
}

interrupted() {
    ((child == 0)) || end_tree "$child"
    exit "$1"
}

# At exit, once there is a slice: deletes it as --delete asks, or says how to.
finish() {
    local code=$?
    trap '' INT TERM HUP
    rm -f -- "$archive"
    ((${#delete_command[@]})) || return
    if [[ ${option[delete]} == always || (${option[delete]} == success && $code == 0) ]]; then
        run "${delete_command[@]}" || die "it was not deleted, and costs: $(quote "${delete_command[@]}")"
    elif ! $dry_run; then
        say "the slice stays, with what runs there, and costs until: $(quote "${delete_command[@]}")"
    fi
}

child=0
archive=
delete_command=()
trap 'interrupted 130' INT
trap 'interrupted 143' TERM HUP
trap finish EXIT
