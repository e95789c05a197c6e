#!/usr/bin/env bash
# Checks and measures the package on one GPU: `bash tests/gpu/check.sh`. It needs no network, and of Python packages
# those of the extra [dev]. Stages run in the order of their value, each under a limit of its own. None stops the next.
#   OUT      folder for logs, figures (JSON) and tables (default: a new one, which the command names)
#   BUDGET   seconds for everything (default 540, a dry run 3600). What no longer fits is skipped and named
#   STAGES   some of: see make modes tests train7 generate profile bits7 offload13 zero3
#   ONLY     cases of the stage modes, as parts of their names with semicolons: ONLY="4 bits;teacher"
#   BATCH    examples of a micro-batch in the measurements (default 8)
#   DRY=1    everything on the CPU with tiny sizes, to try the command itself
# Exit status: 0 if every stage ran and said OK. Missed targets do not change it.
set -uo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
export DRY=${DRY:-} ONLY=${ONLY:-} BATCH=${BATCH:-8} OUT=${OUT:-$(mktemp -d)}
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH} PYTHONUNBUFFERED=1 PYTHONFAULTHANDLER=1
export HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 TOKENIZERS_PARALLELISM=false
python=${PYTHON:-python3}
budget=${BUDGET:-$([[ -n $DRY ]] && echo 3600 || echo 540)}
stages=${STAGES:-see make modes tests train7 generate profile bits7 offload13 zero3}
mkdir -p "$OUT"
echo "logs, figures and tables: $OUT"
rm -f "$OUT"/*.log "$OUT"/*.json "$OUT"/*.md "$OUT/stages.tsv"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
on_cpu=(env CUDA_VISIBLE_DEVICES= DS_ACCELERATOR=cpu)
sizes7=llama2-7b sizes13=llama2-13b length=512 steps=5 few=2 together=8 patience=1 tests=(tests -m gpu)
if [[ -n $DRY ]]; then
    export CUDA_VISIBLE_DEVICES="" DS_ACCELERATOR=cpu APT_DS_GPU_TESTS=cpu OMP_NUM_THREADS=1 BATCH=2
    sizes7=tiny sizes13=tiny length=64 steps=1 few=1 together=2 patience=5 tests=(tests/gpu -m gpu -k pretuning)
fi

wanted() { [[ " $stages " == *" $1 "* ]]; }

run() { # NAME SECONDS COMMAND...: the log is $OUT/NAME.log
    local name=$1 limit=$(($2 * patience)) start=$SECONDS left=$((budget - SECONDS)) status word
    shift 2
    if ((left < 15)); then
        printf '%s\tSKIPPED\t0\t%s\n' "$name" "$limit" >> "$OUT/stages.tsv"
        return
    fi
    ((limit > left)) && limit=$left
    timeout -k 5 "$limit" "$@" > "$OUT/$name.log" 2>&1
    status=$?
    word=FAIL
    ((status == 0)) && word=OK
    ((status == 124 || status == 137)) && word=TIMEOUT
    printf '%s\t%s\t%s\t%s\n' "$name" "$word" $((SECONDS - start)) "$limit" >> "$OUT/stages.tsv"
    echo "$name: $word, $((SECONDS - start)) s of $limit"
}

start() { # as `run`, beside others
    while (($(jobs -rp | wc -l) >= together)); do wait -n; done
    run "$@" &
}

bench() { # NAME SECONDS ZERO SIZES BATCH STEPS VARIANTS MORE...
    local name=$1 seconds=$2 zero=$3 sizes=$4 batch=$5 count=$6 variants=$7
    shift 7
    [[ -n $DRY ]] && set -- --align 8 "$@"
    run "$name" "$seconds" "$python" launchers/benchmark.py --deepspeed "ds_configs/$zero.json" --bf16 --rounds 1 \
        --random_weights "$sizes" --max_seq_length "$length" --per_device_train_batch_size "$batch" --steps "$count" \
        --variants "$variants" --generate 0 --json "$OUT/$name.json" "$@"
}

main() { # a function, so that an edit of this file does not change a check under way
    # without a GPU or a package nothing else can run
    if wanted see; then
        run see 90 "$python" -m tests.gpu.see
        [[ $(tail -1 "$OUT/stages.tsv") == see*FAIL* ]] && budget=0
    fi

    if wanted make || wanted modes; then
        # one compiles what offload needs, one trains the small model of the stage modes
        start compile 150 "$python" -m tests.gpu.compile_ops
        start model 90 "$python" -m tests.gpu.small_model "$work"
        wait
    fi

    # first of all: is it right? On the GPU, and the same on the CPU for comparison
    if wanted modes; then
        for group in bf16 fp16 bits; do
            OMP_NUM_THREADS=2 start "$group" 200 "$python" -m tests.gpu.modes "$group" "$work" "$OUT/modes_$group.json"
            OMP_NUM_THREADS=2 start "$group-cpu" 200 "${on_cpu[@]}" "$python" -m tests.gpu.modes "$group" "$work" \
                "$OUT/cpu_$group.json" --reference
        done
        start memory 150 "$python" -m tests.gpu.memory "$work" "$OUT/memory.json"
        start resume 200 "$python" -m tests.gpu.resume "$work"
    fi
    # each test starts processes, most of whose time is imports
    wanted tests && OMP_NUM_THREADS=1 start tests 200 "$python" -m pytest "${tests[@]}" -q -n 4 -p no:cacheprovider
    wait
    wanted modes && run losses 30 "$python" -m tests.gpu.losses "$OUT"

    # then: what does it cost? Alone on the GPU
    wanted train7 && bench train7 170 zero2 "$sizes7" "$BATCH" "$steps" lora,dense,unscored,cut30,cut50
    wanted generate && run generate 120 "$python" -m tests.gpu.generation "$sizes7" "$OUT/generate.json"
    wanted profile && run profile 70 "$python" -m tests.gpu.step_profile "$sizes7" "$length" "$OUT/profile.json"
    wanted bits7 && bench bits7 60 zero2 "$sizes7" 1 "$few" dense4
    wanted offload13 && bench offload13 150 zero3_offload "$sizes13" 4 "$few" unscored,cut30 --gradient_checkpointing
    wanted zero3 && bench zero3 120 zero3 "$sizes7" "$BATCH" "$few" lora,dense,cut30

    "$python" -m tests.gpu.summary "$OUT" "BUDGET=$budget BATCH=$BATCH${DRY:+ DRY=1} bash tests/gpu/check.sh" "$stages"
}

main
exit
