# shellcheck shell=bash
# What the launchers share; they source it. Needs bash 4.4 or newer.
#
# Options are --NAME=VALUE; the environment variable LAUNCH_NAME stands in for one that is absent.
# What follows "--" goes to `python -m corm_jax.main`, word by word as it was given (or to another
# module, where a launcher has the option).

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: this needs bash 4.4 or newer, and is run by $BASH_VERSION; on macOS: brew install bash" >&2
    exit 1
fi

# corm_jax.main exits with it (EX_TEMPFAIL) once it has saved a checkpoint after SIGTERM.
readonly PREEMPTED=75

repository=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
dry_run=false
flags=()             # of corm_jax.main
declare -A option    # by name without the dashes; a launcher sets its defaults
declare -A repeatable # names of options that may be repeated: --NAME=VALUE adds to the array NAMEs
exec 3>&1            # where --dry-run prints, also from inside $(...)

die() {
    printf 'error: %s\n' "$*" >&2
    exit 1
}

say() {
    printf '== %s\n' "$*" >&2
}

# Prints its arguments as words of a POSIX shell that stand for these very arguments.
quote() {
    local word quoted=()
    for word; do
        case $word in
            '' | *[!A-Za-z0-9_./:=,@%+-]*) word="'${word//\'/\'\\\'\'}'" ;;
        esac
        quoted+=("$word")
    done
    printf '%s' "${quoted[*]}"
}

# Runs a command; --dry-run prints it instead.
run() {
    if $dry_run; then
        printf '%s\n' "$(quote "$@")" >&3
    else
        printf '+ %s\n' "$(quote "$@")" >&2
        "$@"
    fi
}

# The same for a command that changes nothing and whose output is wanted: $(query ...).
query() {
    if $dry_run; then
        printf '%s\n' "$(quote "$@")" >&3
    else
        "$@"
    fi
}

# parse_options "$@": sets `option`, the arrays of `repeatable`, `flags` and `dry_run`.
parse_options() {
    local name value variable
    for name in "${!option[@]}"; do
        variable=LAUNCH_${name^^}
        variable=${variable//-/_}
        option[$name]=${!variable-${option[$name]}}
    done
    while (($#)); do
        case $1 in
            --help | -h)
                usage
                exit 0
                ;;
            --dry-run) dry_run=true ;;
            --)
                shift
                flags=("$@")
                return
                ;;
            --*)
                name=${1%%=*}
                name=${name#--}
                value=${1#*=}
                # Before -v, which would expand a name like $(...).
                if ! [[ $name =~ ^[a-z][-a-z]*$ && (-v "option[$name]" || -v "repeatable[$name]") ]]; then
                    die "unknown option $1; --help lists the options, and flags of corm_jax.main stand after --"
                elif [[ $1 == *=* && -v "repeatable[$name]" ]]; then
                    local -n values=${name//-/_}s
                    values+=("$value")
                elif [[ $1 == *=* ]]; then
                    option[$name]=$value
                elif [[ ${option[$name]-} == true || ${option[$name]-} == false ]]; then
                    option[$name]=true
                else
                    die "--$name needs a value: --$name=VALUE"
                fi
                ;;
            *) die "unexpected argument '$1'; options start with --, and flags of corm_jax.main stand after --" ;;
        esac
        shift
    done
}

# require NAME...: refuses options without a value.
require() {
    local name variable
    for name; do
        variable=LAUNCH_${name^^}
        [[ -n ${option[$name]} ]] || die "--$name is missing (or the environment variable ${variable//-/_}); see --help"
    done
}

# require_number MINIMUM NAME...: refuses options that are not whole numbers from MINIMUM.
require_number() {
    local minimum=$1 name
    shift
    for name; do
        if ! [[ ${option[$name]} =~ ^(0|[1-9][0-9]{0,8})$ ]] || ((option[$name] < minimum)); then
            die "--$name must be a whole number from $minimum, not '${option[$name]}'"
        fi
    done
}

require_choice() {
    local name=$1 choice
    shift
    for choice; do [[ ${option[$name]} != "$choice" ]] || return 0; done
    die "--$name must be one of: $*; not '${option[$name]}'"
}

# require_command COMMAND HINT: refuses to go on where COMMAND is not installed.
require_command() {
    $dry_run || command -v -- "$1" >/dev/null || die "$1 is not installed here, or not on PATH; $2"
}

# flag_value NAME: prints the value of the last --NAME=VALUE or --NAME VALUE of corm_jax.main.
flag_value() {
    local index value=
    for index in "${!flags[@]}"; do
        case ${flags[index]} in
            --"$1"=* | -"$1"=*) value=${flags[index]#*=} ;;
            --"$1" | -"$1") value=${flags[index + 1]-} ;;
        esac
    done
    printf '%s' "$value"
}

# check_urls WORDS: refuses flags that name what the programs do not read. Sets `buckets` to the
# names of the buckets in flags that may name one; where WORDS is "runs", bare words may too.
check_urls() {
    local word
    buckets=()
    for word in "${flags[@]}"; do
        if [[ $word =~ ^--(workdir|config\.init|config\.data\.data_dir)=gs://([^/]+)/[^/] ]]; then
            buckets+=("${BASH_REMATCH[2]}")
        elif [[ $word == *://* && ! ($1 == runs && $word =~ ^gs://[^/]+/[^/]) ]]; then
            die "a flag is $word; what the program reads and writes in a bucket is --workdir=gs://BUCKET/DIR and so --config.data.data_dir and --config.init; for the rest mount the bucket where it runs, and name the path that it has there, such as /mnt/BUCKET/DIR"
        fi
    done
}

# Refuses flags of corm_jax.main that could only fail once machines have been paid for.
check_flags() {
    local config
    check_urls ""
    config=$(flag_value config)
    [[ -n $config ]] || die "name a config after --, such as: -- --config=configs/vit_corm.py"
    (cd "$repository" && [[ -f ${config%%:*} ]]) || die "config file ${config%%:*} is not in $repository"
}

# restart_while_preempted COMMAND...: runs it again while it exits with 75, at most
# --max-restarts times; returns what it returned last.
restart_while_preempted() {
    local code restarts=0
    while true; do
        code=0
        "$@" || code=$?
        ((code == PREEMPTED && restarts < option[max-restarts])) || return "$code"
        restarts=$((restarts + 1))
        say "it stopped at a checkpoint (exit code $code); restart $restarts of at most ${option[max-restarts]}"
    done
}
