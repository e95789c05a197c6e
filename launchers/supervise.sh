#!/usr/bin/env bash
# Start a run again from its last checkpoint when it dies, at most N times:
#   bash launchers/supervise.sh N OUTPUT_DIR deepspeed launchers/train.py --output_dir OUTPUT_DIR ...
# A mistake the user can mend (2) and a run stopped by a signal (130, 138, 143) are not tried again.
set -uo pipefail
if (($# < 3)) || [[ ! $1 =~ ^[0-9]+$ ]]; then
    echo "usage: supervise.sh TIMES OUTPUT_DIR COMMAND [ARGUMENT ...]" >&2
    exit 2
fi
times=$1 output=$2
shift 2

child=0 stopped=0
# the launcher hands the signal on to all ranks, which save and leave
trap 'stopped=1; ((child)) && kill -TERM -- "-$child" 2> /dev/null' TERM INT USR1

# only what this script's own starts wrote may be overwritten
fresh=1
[[ -n $(ls -A -- "$output" 2> /dev/null) ]] && fresh=0

more=()
for ((try = 0; ; try++)); do
    setsid "$@" "${more[@]}" &
    child=$!
    wait "$child"
    status=$?
    # a trapped signal ends `wait` early, and ranks outlive their launcher while they save
    while kill -0 -- "-$child" 2> /dev/null; do
        if kill -0 "$child" 2> /dev/null; then
            wait "$child"
            status=$?
        else
            sleep 0.5
        fi
    done
    case $status in
        0 | 2 | 130 | 138 | 143) exit "$status" ;; # done, a mistake, SIGINT, SIGUSR1, SIGTERM
    esac
    if ((stopped || try == times)); then
        exit "$status"
    fi
    if compgen -G "$output/checkpoint-*/manifest.json" > /dev/null; then
        more=(--resume_from_checkpoint last)
    elif ((fresh)); then
        more=(--overwrite_output_dir)
    fi
    echo "supervise: status $status; start $((try + 1)) of $times again${more[*]:+ with ${more[*]}}" >&2
done
