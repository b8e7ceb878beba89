#!/usr/bin/env bash
# Trains on Kubernetes nodes with TPUs or GPUs, such as those of GKE, as a JobSet.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/../common.sh"

usage() {
    cat <<'END'
usage: launch/gke/launch.sh --name=NAME --image=IMAGE --accelerator=TYPE --hosts=N --chips=N
                            [OPTION ...] -- --workdir=gs://BUCKET/DIR FLAGS OF corm_jax.main

Fills in launch/gke/jobset.yaml, lets the cluster validate it, and creates it. The cluster starts
the run again, from its last checkpoint, when a node is taken away or the program exits with 75.

  --name=NAME              of the JobSet, which must be new: small letters, digits and dashes
  --image=IMAGE            that launch/gpu_docker/run.sh builds (--extra=tpu for TPUs), with its registry
  --accelerator=TYPE       GKE's label: tpu-v5-lite-podslice, tpu-v6e-slice, nvidia-h100-80gb ...
  --topology=AxB           of a TPU slice, such as 4x4; not for GPUs
  --hosts=N                nodes, each of which runs one process
  --chips=N                TPU chips or GPUs of each node
  --spot                   spot nodes
  --namespace=NAMESPACE    (default)
  --context=CONTEXT        of kubectl, which chooses the cluster (kubectl's current one)
  --service-account=NAME   of Kubernetes, which may read and write the buckets (default)
  --claim=NAME             a PersistentVolumeClaim that all nodes can write, mounted as /data: of
                           Filestore, or of a bucket (none)
  --fuse                   the claim is of a bucket, which GKE's Cloud Storage FUSE driver mounts
  --grace=SECONDS          from SIGTERM to SIGKILL (300)
  --max-restarts=N         (100)
  --dry-run                print the commands and the manifest, run nothing

Each option can stand in the environment instead: LAUNCH_CONTEXT=..., LAUNCH_SERVICE_ACCOUNT=...
The disk of a pod goes with it: --workdir must be in a bucket, or below /data. Training in a bucket
has not been tried on a real cluster.

example: launch/gke/launch.sh --name=corm --image=REGISTRY/corm_jax:tpu --accelerator=tpu-v5-lite-podslice \
    --topology=4x4 --hosts=4 --chips=4 -- --config=configs/vit_corm.py:imagenet --workdir=gs://BUCKET/corm
END
}

option=([name]='' [image]='' [accelerator]='' [topology]='' [hosts]='' [chips]='' [spot]=false
    [namespace]=default [context]='' [service-account]=default [claim]='' [fuse]=false [grace]=300
    [max-restarts]=100)
parse_options "$@"
require name image accelerator hosts chips
require_number 1 hosts chips
require_number 0 grace max-restarts
require_choice spot true false
require_choice fuse true false

label='[a-z0-9]([-a-z0-9]*[a-z0-9])?'
for key in name namespace service-account accelerator claim; do
    [[ ${option[$key]} =~ ^$label$ || ($key == claim && -z ${option[claim]}) ]] ||
        die "--$key must be of small letters, digits and dashes, not '${option[$key]}'"
done
# Kubernetes appends -train-0-0-xxxxx to the name, and allows 63 characters.
((${#option[name]} <= 40)) || die "--name must have at most 40 characters, not ${#option[name]}"
[[ ${option[image]} != *[[:space:]]* ]] || die "--image has a space in it: '${option[image]}'"
check_flags
workdir=$(flag_value workdir)
[[ $workdir == gs://* || (-n ${option[claim]} && $workdir == /data/?* && $workdir/ != */../*) ]] ||
    die "a pod's disk goes with it, and the workdir '$workdir' is on it; give --workdir=gs://BUCKET/DIR, or --claim=NAME, which is mounted as /data, and --workdir=/data/DIR"
[[ ${option[fuse]} == false || -n ${option[claim]} ]] || die "--fuse says what the claim is of; name it: --claim=NAME"

selector="\"cloud.google.com/gke-${option[accelerator]%%-*}-accelerator\": \"${option[accelerator]}\""
annotations='{}'
env='[]'
case ${option[accelerator]} in
    tpu-*)
        [[ ${option[topology]} =~ ^[0-9]+x[0-9]+(x[0-9]+)?$ ]] ||
            die "--topology must be such as 4x4 or 2x2x2, not '${option[topology]}'"
        chips=$((${option[topology]//x/*}))
        ((chips == option[hosts] * option[chips])) ||
            die "a ${option[topology]} slice has $chips chips, and ${option[hosts]} hosts with ${option[chips]} have $((option[hosts] * option[chips]))"
        selector+=", \"cloud.google.com/gke-tpu-topology\": \"${option[topology]}\""
        limits="{\"google.com/tpu\": \"${option[chips]}\"}"
        annotations='{"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"}'
        distributed=(--distributed) # GKE's variables say the rest
        ;;
    nvidia-*)
        [[ -z ${option[topology]} ]] || die "--topology is for TPUs; ${option[accelerator]} has none"
        selector=${selector/gke-nvidia-/gke-}
        limits="{\"nvidia.com/gpu\": \"${option[chips]}\"}"
        distributed=()
        # The first pod, by the name that JobSet gives it.
        env="[{\"name\": \"CORM_COORDINATOR\", \"value\": \"${option[name]}-train-0-0.${option[name]}:8476\"},
            {\"name\": \"CORM_NUM_PROCESSES\", \"value\": \"${option[hosts]}\"},
            {\"name\": \"CORM_PROCESS_ID\", \"valueFrom\": {\"fieldRef\": {\"fieldPath\":
                \"metadata.annotations['batch.kubernetes.io/job-completion-index']\"}}}]"
        ;;
    *) die "--accelerator must start with tpu- or nvidia-, as GKE's labels do, not '${option[accelerator]}'" ;;
esac
tolerations='[]'
if ${option[spot]}; then
    selector+=', "cloud.google.com/gke-spot": "true"'
    tolerations='[{"key": "cloud.google.com/gke-spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"}]'
fi
volumes='[]'
mounts='[]'
if [[ -n ${option[claim]} ]]; then
    volumes="[{\"name\": \"data\", \"persistentVolumeClaim\": {\"claimName\": \"${option[claim]}\"}}]"
    mounts='[{"name": "data", "mountPath": "/data"}]'
fi
pod_annotations='{}'
! ${option[fuse]} || pod_annotations='{"gke-gcsfuse/volumes": "true"}' # GKE adds the container that mounts

require_command python3 "it fills in the manifest"
manifest=$(python3 "$repository/launch/gke/fill.py" "$repository/launch/gke/jobset.yaml" \
    name="${option[name]}" namespace="${option[namespace]}" image="${option[image]}" \
    service_account="${option[service-account]}" hosts:="${option[hosts]}" grace:="${option[grace]}" \
    max_restarts:="${option[max-restarts]}" node_selector:="{$selector}" tolerations:="$tolerations" \
    annotations:="$annotations" pod_annotations:="$pod_annotations" volumes:="$volumes" \
    mounts:="$mounts" env:="$env" limits:="$limits" \
    -- python -m corm_jax.main "${distributed[@]}" "${flags[@]}")

require_command kubectl "install it: https://kubernetes.io/docs/tasks/tools"
kubectl=(kubectl)
[[ -z ${option[context]} ]] || kubectl+=(--context="${option[context]}")
kubectl+=(--namespace="${option[namespace]}")

# create FLAG...: creates the manifest, or with a flag asks whether it could be created.
create() {
    if $dry_run; then
        printf "%s <<'END'\n%s\nEND\n" "$(quote "${kubectl[@]}" create "$@" --filename=-)" "$manifest"
    else
        run "${kubectl[@]}" create "$@" --filename=- <<<"$manifest"
    fi
}

if [[ -z ${option[context]} ]]; then
    context=$(query kubectl config current-context) ||
        die "kubectl knows no cluster; run: gcloud container clusters get-credentials CLUSTER --location=LOCATION"
    say "the cluster is kubectl's current one: $context"
fi
query "${kubectl[@]}" get crd jobsets.jobset.x-k8s.io --output=name >/dev/null ||
    die "the cluster cannot be reached or has no JobSet; kubectl's message stands above. JobSet: https://jobset.sigs.k8s.io/docs/installation"
query "${kubectl[@]}" get namespace "${option[namespace]}" --output=name >/dev/null ||
    die "namespace ${option[namespace]} cannot be used; kubectl's message stands above"
[[ -z ${option[claim]} ]] || query "${kubectl[@]}" get persistentvolumeclaim "${option[claim]}" --output=name >/dev/null ||
    die "the claim ${option[claim]} cannot be used; kubectl's message stands above"
existing=$(query "${kubectl[@]}" get jobset "${option[name]}" --ignore-not-found --output=name) ||
    die "cannot see whether ${option[name]} exists; kubectl's message stands above"
[[ -z $existing ]] ||
    die "JobSet ${option[name]} exists; choose another --name, or delete it: $(quote "${kubectl[@]}" delete jobset "${option[name]}")"
nodes=$(query "${kubectl[@]}" get nodes --output=name \
    --selector="$(sed 's/"//g; s/: /=/g; s/, /,/g' <<<"$selector")") ||
    die "cannot list the nodes; kubectl's message stands above"
$dry_run || [[ -n $nodes ]] ||
    say "note: no node of the cluster is of this kind now; the run waits unless a node pool can grow"

create --dry-run=server || die "the cluster refuses the manifest; kubectl's message stands above"
create || die "the JobSet was not created; kubectl's message stands above"
! $dry_run || exit 0
say "its log: $(quote "${kubectl[@]}" logs --follow --prefix --max-log-requests="${option[hosts]}" \
    --selector=jobset.sigs.k8s.io/jobset-name="${option[name]}")"
say "its state: $(quote "${kubectl[@]}" get jobset "${option[name]}")"
say "its end, saving a checkpoint: $(quote "${kubectl[@]}" delete jobset "${option[name]}")"
