#!/usr/bin/env bash
# Trains the siblings of `mini`, and measures all of them: examples/train_siblings.sh DATA WORK OUT
#
# The same backbone (EfficientNet-Lite2 as ImageNet left it) and the same cleaned pictures and prompts, in four other
# approaches. WORK is what examples/train_mini.sh left. A step whose result is there is passed over. On two cores of
# 2021 without bf16: resnet-lstm 40 min, the direct ones 25 min, index 8 min, the rest 10 min.
set -euo pipefail
if [ $# -ne 3 ]; then
  echo "$0 needs DATA WORK OUT: the data folder and the work folder that train_mini.sh was given, and a folder for the models." >&2
  exit 2
fi
data=$1 work=$2 out=$3
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=2000000000:glibc.malloc.trim_threshold=4000000000
step() { local result=$1; shift; [ -e "$result" ] || "$@"; }
mini() { python -m training.mini "$@" --data "$data" --work "$work" --seed 7; }
mkdir -p "$out"

step "$work/pairs" mini pairs --out "$work/pairs"

step "$out/resnet-lstm/README.md" python -m training.resnet_lstm --data "$work/pairs" --out "$out/resnet-lstm" \
  --backbone efficientnet-lite2 --cache-features "$work/regions" --by-prompt --vocabulary-size 4000 --hidden-size 256 \
  --max-tokens 40 --batch-size 32 --epochs 8 --lr 1e-3 --schedule cosine --warmup 0.05 --seed 7 --device cpu

# direct has mini's backbone; the two smaller ones err differently, which is what an ensemble lives on.
for size in 2 1 0; do
  direct="$out/direct$([ $size = 2 ] || echo -lite$size)"
  step "$direct/README.md" python -m training.direct --data "$work/pairs" --out "$direct" \
    --backbone efficientnet-lite$size --pool statistics --head residual --freeze backbone \
    --cache-features "$work/pooled" --by-prompt --batch-size 128 --epochs 40 --lr 3e-4 --weight-decay 0.05 --seed 7 \
    --device cpu
done

step "$out/knn" captioner index build "$work/pairs/train" --backbone efficientnet-lite2 --pool statistics --scaled \
  --dims 128 --out "$out/knn" --device cpu
captioner index tune "$out/knn" --data "$work/pairs/validation.parquet"

# Two ensembles: of what embeds directly, and with mini.
embedders=$out/direct,$out/direct-lite1,$out/direct-lite0,$out/knn
step "$out/ensemble-direct.json" captioner ensemble fit --members "$embedders" --data "$work/pairs/validation.parquet" \
  --out "$out/ensemble-direct.json" --device cpu
# The weights are fitted with a head of mini that has met no validation prompt; then the whole mini takes its place.
if [ ! -e "$out/ensemble.json" ]; then
  mini export --held-back --out "$out/mini"
  captioner ensemble fit --members "$out/mini+expected,$embedders" --data "$work/pairs/validation.parquet" \
    --out "$out/ensemble.json" --device cpu
fi
mini export --out "$out/mini"

# Held-out pictures: measured, never chosen by.
python -m eval report --data "$data/heldout-dev/pairs.parquet" --out "$out/report" --figures-only --device cpu \
  --models "mini=$out/mini,mini expected=$out/mini+expected,resnet-lstm=$out/resnet-lstm,direct=$out/direct,\
direct lite1=$out/direct-lite1,direct lite0=$out/direct-lite0,knn=$out/knn,ensemble direct=$out/ensemble-direct.json,\
ensemble=$out/ensemble.json,nearest text=nearest:$out/knn,constant=constant:$out/knn" \
  --title "mini and its siblings on held-out pictures"
