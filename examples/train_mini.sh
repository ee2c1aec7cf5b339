#!/usr/bin/env bash
# Trains the bundled model `mini` from the data folder: examples/train_mini.sh DATA WORK OUT
#
# DATA holds pairs/*.parquet, prompts/*.txt.gz and heldout-dev/*.parquet. Every stage keeps its results in WORK and a
# long one resumes where it stopped. What ships was not made in one go: `language` and `gist` are those of an earlier
# version's data, `reward` ran anew from them. One go of the recipe as it is here gave a decoder that is 0.018 and 0.008
# below it on validation prompts, and within noise of it on the held-out pairs (training/mini/TRIALS.md). On one core
# with AMX, shared at times: texts 20 min of its own time, features 14 on a slower one, head 2, language 41, gist 3,
# reward 19. Needs the extra `train`.
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
