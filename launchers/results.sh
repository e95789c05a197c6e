#!/usr/bin/env bash
# Make one table of launchers/RESULTS.md again: train all methods, judge them, write the table into its place.
# Usage: bash launchers/results.sh NAME DATA OUTPUT [OPTIONS of compare.py]
# NAME: sweep, parts, sst2 or rte. DATA: folder with the data that RESULTS.md lists. OUTPUT: folder for all runs.
# A second start trains only what is missing in OUTPUT. APT_DS_RESULTS names another document than RESULTS.md.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"

if (($# < 3)); then
    sed -n '2,5s/^# //p' "${BASH_SOURCE[0]}" >&2
    exit 2
fi
name=$1 data=$2 output=$3
shift 3

document=${APT_DS_RESULTS:-$here/RESULTS.md}
# the setting of SmolLM2 in the README
smollm2=(
    --bf16 --attn_implementation eager --model_name_or_path builtin:smollm2
    --data_path "$data/alpaca/alpaca_gpt4_train.json" --eval_size 48
    --perplexity_path "$data/wikitext2/validation.txt" --perplexity_length 512 --perplexity_blocks 16
    --max_steps 60 --per_device_train_batch_size 8 --max_seq_length 128 --learning_rate 1e-3
    --calibration_steps 12 --structure adaptive --prune_blocks neurons --adapter_targets q,v,down --save_steps 0
    --seeds 128,1,2
)
# instructions and plain text to train on and to calibrate with, and texts and tasks that nobody calibrates on
broad=(
    --data_path "$data/alpaca/alpaca_gpt4_train.json:0.5,$data/plain/wikipedia.txt[:50%]:0.25,$data/plain/c4.txt[:50%]:0.25"
    --eval_data_path "$data/alpaca/alpaca_validation.json" --local_suite "$data" --local_limit 100
    --perplexity_path "$data/wikitext2/validation.txt,$data/plain/c4.txt[50%:]"
)
baselines=lora_prune,prune_distill,lora_prune_distill,mask_tuning
ablations=apt_undistilled,apt_fixed_ranks,apt_even_ranks,apt_unpruned
repaired=apt[pruning=posttuning,pruning_phase=0.4,repair=ls,distill=none]
small=(--preset minilm-sst2 --sparsity 0.6 --save_steps 0 --logging_steps 20 --efficiency)
case $name in
sweep)
    # every method that prunes, against LoRA and full fine-tuning that do not
    options=("${smollm2[@]}" "${broad[@]}" --methods pruning,lora,full --sparsity 0.2,0.3,0.4,0.5,0.6 --full_learning_rate 5e-5)
    ;;
parts)
    # the default for language models, and each of its parts left out or exchanged
    variants=apt,apt[repair=none],apt[distill=logits],apt[distill=logits,distill_weight=0.2]
    variants+=",apt[data_path=$data/alpaca/alpaca_gpt4_train.json],apt[calibration_average=moving],apt[allocate=kl]"
    variants+=",apt[allocate=kl,allocate_evaluations=100],apt[score=obs],apt[rewrite_answers=true],apt[structure=uniform]"
    # without heads and hidden dimensions a budget has one uniform size, which --allocate kl cannot change
    variants+=",apt[structure=uniform,repair=none]"
    options=("${smollm2[@]}" "${broad[@]}" --methods "$variants" --sparsity 0.3,0.5)
    ;;
sst2)
    options=(
        "${small[@]}" --data_path "$data/sst2" --full_learning_rate 1e-4
        # the variants of apt learn the task before they prune: slowly, or at once with a repair
        --methods "full,lora,$baselines,apt,apt[pruning_start=0.2,pruning_phase=0.4],$repaired,$ablations"
    )
    ;;
rte)
    options=(
        "${small[@]}" --task rte --data_path "$data/rte" --max_seq_length 128 --prune_every 78 --eval_steps 78
        --num_train_epochs 10 --full_learning_rate 2e-5 --group_by_length
        # the variant of apt learns the task before it prunes
        --methods "full,lora,lora_prune,apt,apt[pruning_start=0.4,pruning_phase=0.3]"
    )
    ;;
*)
    echo "error: $name is not a table: give sweep, parts, sst2 or rte" >&2
    exit 2
    ;;
esac

python "$here/compare.py" --deepspeed "$here/../ds_configs/zero2.json" "${options[@]}" --output_dir "$output" "$@"
python -m apt_ds.analysis.compare_table --folder "$output" --into "$document" --section "$name"
if [[ $name == sweep ]]; then
    pictures=$(dirname "$document")/results
    mkdir -p "$pictures"
    cp "$output/table.json" "$pictures/sweep.json"
    python -m apt_ds.analysis.plots --table "$pictures/sweep.json" --picture "$pictures/sweep.png" --sweep \
        --title "SmolLM2-135M after pruning, mean and deviation over seeds"
fi
