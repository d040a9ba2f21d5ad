#!/usr/bin/env bash
# Everything that needs a CUDA GPU, most valuable first, each part bounded and kept by itself:
#
#     benchmarks/gpu.sh OUTPUT                     # all parts, half an hour at most (GPU_SECONDS=1800)
#     benchmarks/gpu.sh OUTPUT tests sft_7b_lora   # these parts
#     benchmarks/gpu.sh --tiny OUTPUT              # a dry run with tiny models, on any machine
#
# A part writes OUTPUT/PART.log and PART.json; OUTPUT/summary.txt has a line a part with its exit status (124: out of
# time) and seconds. The 7B model of random weights is written once, to GPU_MODEL (/tmp/aligngpt_random_7b; 14 GB).
set -uo pipefail
cd "$(dirname "$0")/.."

tiny=false
if [ "${1:-}" = --tiny ]; then tiny=true; shift; fi
output=${1:?"usage: benchmarks/gpu.sh [--tiny] OUTPUT [PART ...]"}; shift
mkdir -p "$output"
output=$(cd "$output" && pwd)
chosen=" $* "
python=${PYTHON:-$([ -x .venv/bin/python ] && echo .venv/bin/python || echo python3)}
model=${GPU_MODEL:-/tmp/aligngpt_random_7b}
deadline=$((SECONDS + ${GPU_SECONDS:-1800}))
failed=0
export PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false COLUMNS=119
: > "$output/summary.txt"

part() {  # NAME LIMIT COMMAND...
    local name=$1 limit=$2 left begin status; shift 2
    if [ "$chosen" != "  " ] && [ "${chosen#* $name }" = "$chosen" ]; then return; fi
    left=$((deadline - SECONDS))
    if [ $left -lt 20 ]; then echo "$name: not begun, out of time" | tee -a "$output/summary.txt"; return; fi
    begin=$SECONDS
    timeout -k 5 $((limit < left ? limit : left)) "$@" > "$output/$name.log" 2>&1 < /dev/null
    status=$?
    [ $status -eq 0 ] || failed=1
    echo "$name: exit $status, $((SECONDS - begin)) s" | tee -a "$output/summary.txt"
    if [ $status -eq 0 ]; then tail -n "${lines:-16}" "$output/$name.log"; else tail -n 25 "$output/$name.log"; fi
}

measure() {  # RECIPE LIMIT ARGUMENTS...; NAME=... for another name than the recipe's
    local recipe=$1 limit=$2 name=${NAME:-$1}; shift 2
    lines=3 part "$name" "$limit" "$python" benchmarks/training_memory.py --measure "$recipe" --model "$model" \
        --json "$output/$name.json" --disable_tqdm true --dataloader_num_workers 4 "$@" "${on_cpu[@]}"
}

if $tiny; then
    model=$output/model size=tiny gib=1000
    on_cpu=(--use_cpu true --bf16 false --fp16 false --tf32 false --dtype float32 --max_length 256)
    on_cpu+=(--per_device_train_batch_size 1 --gradient_accumulation_steps 1 --dataloader_num_workers 0)
    llava=(--rounds 1 --batch_sizes 1 --text_tokens 8) scoring=(--pairs 64) threads=2
else
    size=7b on_cpu=() threads=8
    gib=$("$python" -c 'import torch; print(int(torch.cuda.get_device_properties(0).total_memory / 2**30))') || exit 1
    llava=(--size 7b --device cuda) scoring=(--large --device cuda --pairs 2048 --workers 12)
fi

part versions 60 "$python" -c 'import sys; from importlib.metadata import version; import torch; print(sys.version)
print(*(f"{name}=={version(name)}" for name in "torch transformers trl peft accelerate bitsandbytes".split()))
print(torch.cuda.get_device_name() if torch.cuda.is_available() else "no CUDA GPU")'
part tests 150 "$python" -m pytest -q -m gpu -k "not 7b" -p no:cacheprovider tests/test_gpu.py
if [ ! -f "$model/config.json" ]; then
    part model 120 "$python" benchmarks/training_memory.py --write_model "$model" --size $size
fi
measure pretrain_7b 100 --gradient_accumulation_steps 1
measure sft_7b_lora 110
measure sft_7b_qlora_24gb 110 --gradient_accumulation_steps 2
if [ "$gib" -ge 72 ]; then  # float32 weights and gradients and 8-bit moments: 10 bytes a parameter
    measure sft_7b 150 --per_device_train_batch_size 4 --optim adamw_bnb_8bit
fi
part beside_llava 120 "$python" benchmarks/beside_llava.py "${llava[@]}" --json "$output/beside_llava.json"
if ! $tiny; then
    part in_4_bits 90 "$python" benchmarks/beside_llava.py "${llava[@]}" --load_in_4bit "$model" --rounds 3 \
        --json "$output/in_4_bits.json"
fi
NAME=pretrain_7b_no_checkpointing measure pretrain_7b 100 --gradient_accumulation_steps 1 \
    --activation_checkpointing false
part scoring 120 "$python" benchmarks/scoring.py "${scoring[@]}" --threads $threads
measure sft_7b_qlora_t4 90 --gradient_accumulation_steps 2
if ! $tiny; then
    part compiled 240 "$python" benchmarks/beside_llava.py "${llava[@]}" --compile --rounds 2 --batch_sizes 1 \
        --json "$output/compiled.json"
fi
exit $failed
