#!/bin/sh
# A published-style table on a real small model: Qwen2.5-0.5B-Instruct on GSM8K, the published tree and
# roles, SFT and DPO adapters, every baseline at equal calls.
#
#   sh scripts/qwen25_gsm8k.sh                   # one H100; see the config
#   sh scripts/qwen25_gsm8k.sh --seeds "0 1 2"   # several seeds, and their pooled table
#   sh scripts/qwen25_gsm8k.sh --cpu             # REDUCED, two cores overnight: no evidence of an effect
#
# Further words go to `malt run`: --task.train-path FILE --task.eval-path FILE for local files in GSM8K's
# columns, --model.path FOLDER for a local model, --dry-run to see what would happen. Expect the table of
# results on standard output and runs/qwen25-0.5b-gsm8k/seed-N/{results.md,report.html,plots}; run again,
# it continues where it stopped.
set -eu
cd "$(dirname "$0")/.."
config=configs/qwen25_0_5b_gsm8k.yaml
runs=runs/qwen25-0.5b-gsm8k
seeds=0
while :; do
  case "${1-}" in
    --cpu) config=configs/qwen25_0_5b_gsm8k_cpu.yaml; runs=runs/qwen25-0.5b-gsm8k-cpu; shift ;;
    --seeds) seeds=$2; shift 2 ;;
    *) break ;;
  esac
done
folders=
for seed in $seeds; do
  malt run --config "$config" --seed "$seed" --output-dir "$runs/seed-$seed" "$@"
  folders="$folders $runs/seed-$seed"
done
case " $* " in *" --dry-run "*) exit 0 ;; esac
case "$seeds" in *" "*) malt pool $folders --output "$runs/pooled" ;; esac
