#!/bin/sh
# Long training on a workstation that is in use: at the lowest priority, with threads that do not spin while they wait.
#
#   sh recipes/train_in_background.sh train RECIPE FOLDER THREADS [--key value ...]
#       trains RECIPE in the run folder FOLDER; run again, it goes on where it was. Ctrl-C, or `kill` with the number in
#       FOLDER.pid, stops it at the end of a step, with a checkpoint. In the background, to go on after logging out:
#       nohup sh recipes/train_in_background.sh train RECIPE FOLDER THREADS > FOLDER.log 2>&1 &
#
#   sh recipes/train_in_background.sh release RECIPE FOLDER BRANCH EPOCHS THREADS [--key value ...]
#       copies the state of FOLDER, which may train meanwhile, to the run folder BRANCH, lets the learning rate fall to 0
#       in EPOCHS, and exports the averaged weights to BRANCH.safetensors. Run again, it goes on where it was.
#
# RECIPE should train a trunk: warmup_stable_decay.v1 with decay = 0, or constant.v1. Further options are overrides of
# the recipe, or those of `kldm train`; `release` wants the same as `train`. PYTHON names the interpreter.
set -eu

usage() {
    sed -n '2,14s/^#//p' "$0" >&2
    exit 2
}

case ${1-} in
train)
    [ $# -ge 4 ] || usage
    recipe=$2 folder=${3%/} threads=$4
    shift 4
    if [ -f "$folder.pid" ] && kill -0 "$(cat "$folder.pid")" 2>/dev/null; then
        echo "Error: process $(cat "$folder.pid") trains $folder already; stop it, or remove $folder.pid" >&2
        exit 1
    fi
    mkdir -p "$(dirname "$folder")"
    export OMP_NUM_THREADS="$threads" OMP_WAIT_POLICY=PASSIVE
    nice -n 19 "${PYTHON:-python3}" -m kldm train "$recipe" --out "$folder" "$@" &
    echo $! > "$folder.pid"
    trap 'kill "$!"' INT TERM
    status=0
    wait "$!" || status=$?
    while kill -0 "$!" 2>/dev/null; do # a signal ended the wait, not the training
        status=0
        wait "$!" || status=$?
    done
    rm -f "$folder.pid"
    exit "$status"
    ;;
release)
    [ $# -ge 6 ] || usage
    recipe=$2 folder=${3%/} branch=${4%/} epochs=$5 threads=$6
    shift 6
    export OMP_NUM_THREADS="$threads" OMP_WAIT_POLICY=PASSIVE
    # The decayed weights are the last: validation, which costs time, is for them alone.
    nice -n 19 "${PYTHON:-python3}" -m kldm train "$recipe" --out "$branch" "$@" \
        --training.start_from "$folder" --training.start_with state --training.epochs "$epochs" \
        --training.learning_rate_schedule.@learning_rates warmup_stable_decay.v1 \
        --training.learning_rate_schedule.warmup_steps 0 --training.learning_rate_schedule.decay 1 \
        --training.validate_every "$epochs" --training.checkpoint_every 1 --training.minutes null &
    trap 'kill "$!"; wait "$!"; exit 1' INT TERM
    wait "$!"
    [ -f "$branch.safetensors" ] || "${PYTHON:-python3}" -m kldm export "$branch" --out "$branch.safetensors"
    ;;
*) usage ;;
esac
