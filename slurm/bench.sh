#!/usr/bin/env bash
# Finds what limits the speed of this job's GPUs: times each part of a training step, alone and together:
#
#   sbatch --partition gpu --nodes 2 slurm/bench.sh --data.train /imagenet/train --data.val /imagenet/val
#   sbatch --partition gpu --nodes 1 slurm/bench.sh configs/resnet50_90ep.yaml --data.source synthetic
#
# The table is at the end of bench-JOB.log here, with page and JSON in bench/ladder-JOB. Options of
# `harness bench ladder` go with the flags (--minutes 20). What your site needs: see slurm/README.md.
#
#SBATCH --job-name=bench
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=00:30:00
#SBATCH --output=%x-%j.log
set -euo pipefail

# Slurm runs a copy of this file out of its spool, but knows where the file itself is.
here=$(dirname "$(realpath "$0")")
if [ ! -f "$here/common.sh" ]; then
    here=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/.*\.sh.*|\1|p' | sort -u)
fi
source "$here/common.sh"

[ -n "${SLURM_JOB_ID:-}" ] || die "give it to sbatch: sbatch --nodes 1 $0 ..."
set_args configs/resnet50_90ep.yaml "$@"
nproc="${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}"
[ -n "$nproc" ] || die "Slurm gave no GPU: give --gpus-per-node, or set NPROC_PER_NODE"
set_variables
check_limits
run_step torchrun_on_each_node 0 -m harness bench ladder --out "bench/ladder-$SLURM_JOB_ID" "${args[@]}"
