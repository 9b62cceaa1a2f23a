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

# Slurm runs a copy of this file, but knows where it was: in the checkout; if not, sbatch was called there.
file=$(scontrol show job "${SLURM_JOB_ID:-0}" 2>/dev/null | sed -n 's|.* Command=/|/|p') || true
for home in "$(realpath "$0")" "$file" "${HARNESS_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}/"; do
    until [ -z "$home" ] || [ -f "$home/launch/ending.py" ]; do home=${home%/*}; done
    [ -z "$home" ] || break
done
[ "$home" ] || { echo "error: found no checkout; call sbatch in one, or set HARNESS_HOME to it" >&2; exit 2; }
source "$home/slurm/common.sh"

in_job || die "give it to sbatch: sbatch --nodes 1 $0 ..."
set_args configs/resnet50_90ep.yaml "$@"
set_nproc
set_variables
check_limits
run_step torchrun_on_each_node 0 -m harness bench ladder --out "bench/ladder-$SLURM_JOB_ID" "${args[@]}"
