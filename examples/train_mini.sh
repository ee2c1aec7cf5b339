#!/usr/bin/env bash
# Trains the bundled model `mini` from the data folder: examples/train_mini.sh DATA WORK OUT
#
# DATA holds pairs/*.parquet, prompts/*.txt.gz and heldout-dev/*.parquet. Every stage keeps its results in WORK and a
# long one resumes where it stopped. What ships was not made in one go: stages `texts` to `head` ran on the data as it
# is now, `language` and `gist` are those of an earlier version's data, `reward` ran anew from them
# (training/mini/TRIALS.md); a run in one go gives a decoder of its own. On one core of 2021 without bf16: texts 18 min,
# features 14 min, language 66 min, the rest 10 min. `reward` takes 2.0 s a step on a core with AMX that it has for
# itself, 19 min in all, and longer without. Needs the extra `train`.
set -euo pipefail
if [ $# -ne 3 ]; then
  echo "$0 needs DATA WORK OUT: the data folder (pairs/, prompts/, heldout-dev/), a folder for results in between, and the folder of the new model." >&2
  exit 2
fi
data=$1 work=$2 out=$3

# glibc then keeps the pages of freed tensors: a quarter faster.
export GLIBC_TUNABLES=glibc.malloc.mmap_threshold=2000000000:glibc.malloc.trim_threshold=4000000000
stage() { python -m training.mini "$@" --data "$data" --work "$work" --seed 7; }

stage texts                  # clean prompts, MiniLM embeddings; texts near a held-out prompt are left out
stage features               # EfficientNet-Lite2 statistics of every picture
stage split                  # validation prompts, by groups of like prompts
stage head                   # picture → prompt embedding, and how far such guesses are off
stage language               # embedding → prompt, from text alone
stage gist                   # tokens → embedding: candidates are compared by it
stage reward                 # the same decoder, by how near its own texts come
stage choose                 # ways of searching, compared on the validation prompts
stage export --out "$out"
stage measure --out "$out"   # held-out pictures: measured, never chosen by
