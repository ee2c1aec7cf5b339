#!/bin/bash
# A plan of shards on a Slurm cluster: every task takes the next free shard until none is left, so tasks may be many or
# few, end early or be killed; submit the same again until `captioner status` says that all is done.
#
#     captioner plan "tars/*.tar" --out /shared/run
#     sbatch --array=1-64 examples/slurm.sh /shared/run --model blip-large
#     captioner status /shared/run --price-per-hour 1.20
#     captioner merge /shared/run captions.parquet
#
#SBATCH --job-name=captions
#SBATCH --gpus-per-task=1
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --output=captions-%A-%a.log
set -eu
exec captioner generate --out "$@"
