#!/usr/bin/env bash
# Several processes on this machine, each with fake CPU devices: what a TPU pod runs, on a laptop.
set -euo pipefail
# shellcheck source=launch/common.sh
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

usage() {
    cat <<'END'
usage: launch/local_multiprocess.sh [--processes=N] [--devices=M] [OPTION ...] -- FLAGS OF THE MODULE

Starts N processes of `python -m MODULE FLAGS` on this machine, which together see N x M fake CPU
devices. Every line of their output starts with [PROCESS]. When one fails, the others are stopped.
Ctrl-C and SIGTERM are passed on to all. Exits with the code of the first that failed.

  --processes=N       processes (2)
  --devices=M         CPU devices of each process (1)
  --module=MODULE     corm_jax.main, or corm_jax.evaluate for models of ours (corm_jax.main)
  --port=PORT         of the coordinator, on localhost (0: a free one)
  --grace=SECONDS     how long processes may take to stop before they are killed (60)
  --max-restarts=N    how often to restart what exits with 75, preempted at a checkpoint (0)
  --dry-run           print the commands, start nothing
  PYTHON=COMMAND      environment: the interpreter (python)

Each option can stand in the environment instead: LAUNCH_PROCESSES=4, LAUNCH_MAX_RESTARTS=1.

example: launch/local_multiprocess.sh --processes=2 --devices=4 -- --config=configs/vit_corm.py
example: launch/local_multiprocess.sh --module=corm_jax.evaluate -- runs/demo/vit_corm --output=evaluations/corm
END
}

option=([processes]=2 [devices]=1 [module]=corm_jax.main [port]=0 [grace]=60 [max-restarts]=0)
parse_options "$@"
require_number 1 processes devices
require_number 0 port grace max-restarts
require_choice module corm_jax.main corm_jax.evaluate
python=${PYTHON:-python}
require_command "$python" "activate the environment with corm_jax, or name an interpreter: PYTHON=.venv/bin/python"
if [[ ${option[module]} == corm_jax.main ]]; then
    check_flags
else
    check_urls runs
fi

processes=${option[processes]}
# The number of fake devices replaces one that the environment may ask for.
xla_flags="${XLA_FLAGS-} --xla_force_host_platform_device_count=${option[devices]}"

# Prints a port on which nothing listens, below those that Linux gives to outgoing connections.
free_port() {
    local port
    for _ in {1..100}; do
        port=$((20000 + RANDOM % 12000))
        if ! (exec 4<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
            echo "$port"
            return
        fi
    done
    die "found no free port from 20000 to 31999; name one: --port=PORT"
}

# Sets `command` to that of process $1.
set_command() {
    command=(env "XLA_FLAGS=${xla_flags# }" JAX_PLATFORMS=cpu PYTHONUNBUFFERED=1 "CORM_COORDINATOR=localhost:$port"
        "CORM_NUM_PROCESSES=$processes" "CORM_PROCESS_ID=$1"
        "$python" -m "${option[module]}" "${flags[@]}")
}

# send SIGNAL: to the process groups of all that still run.
send() {
    local pid
    for pid in "${running[@]}"; do kill -s "$1" -- "-$pid" 2>/dev/null || true; done
}

# From the first call on, processes have --grace seconds left.
limit() {
    ((deadline)) || deadline=$((SECONDS + option[grace]))
}

# Passes a signal on; nothing is started any more.
stop() {
    stopped=true
    option[max-restarts]=0
    send "$1"
    limit
}

run_once() {
    local index pid code first_code=0 labels=() label
    local -A process_of=()
    running=()
    deadline=0
    port=${option[port]}
    ((port)) || port=$(free_port) || exit
    for ((index = 0; index < processes; index++)); do
        set_command "$index"
        # The labelling outlives signals that reach the whole terminal: last words are worth reading.
        exec {label}> >(trap '' INT TERM HUP; exec sed -u "s/^/[$index] /")
        labels+=("$!")
        # Job control gives the process a group of its own, and SIGINT its default meaning.
        set -m
        "${command[@]}" </dev/null >&"$label" 2>&1 3>&- {label}>&- &
        set +m
        exec {label}>&-
        running+=("$!")
        process_of[$!]=$index
    done
    ! $stopped || send TERM # to those that started after the signal
    while ((${#running[@]})); do
        for index in "${!running[@]}"; do
            pid=${running[index]}
            ! kill -0 "$pid" 2>/dev/null || continue
            unset "running[index]"
            code=0
            wait "$pid" || code=$?
            ((code)) || continue
            say "process ${process_of[$pid]} ended with code $code"
            if ((first_code == 0)); then
                first_code=$code
                $stopped || send TERM
                limit
            fi
        done
        if ((deadline > 0 && SECONDS >= deadline && ${#running[@]})); then
            say "killed after ${option[grace]} seconds, still running: ${#running[@]}"
            send KILL
            deadline=-1
        fi
        sleep 0.2 || true # a signal to the terminal ends it early
    done
    for pid in "${labels[@]}"; do wait "$pid" || true; done
    return "$first_code"
}

if $dry_run; then
    port=${option[port]}
    ((port)) || port=$(free_port) || exit
    for ((index = 0; index < processes; index++)); do
        set_command "$index"
        run "${command[@]}"
    done
    exit 0
fi

cd "$repository"
stopped=false
trap 'stop INT' INT
trap 'stop TERM' TERM HUP
running=()
deadline=0
code=0
restart_while_preempted run_once || code=$?
! $stopped || say "stopped; the same command goes on"
exit "$code"
