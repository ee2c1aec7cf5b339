#!/bin/bash
# A plan of shards on one machine without anything else: N processes with one thread each, which share its processors.
#
#     captioner plan photos --recursive --out run
#     examples/xargs.sh run 8 --model mini
set -eu
out=$1 count=$2
shift 2
export OMP_NUM_THREADS=1
seq "$count" | xargs -P "$count" -I {} captioner generate --out "$out" --shard "{}/$count" "$@"
