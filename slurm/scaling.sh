#!/usr/bin/env bash
# Measures how training scales over this job's GPUs: 1, 2, 4 ... up to all of them, weak and strong:
#
#   sbatch --partition gpu --nodes 4 slurm/scaling.sh \
#       --train.global-batch 8192 --data.train /imagenet/train --data.val /imagenet/val
#   sbatch --partition gpu --nodes 4 slurm/scaling.sh configs/torchvision_v1/resnet18.yaml --data.source synthetic
#
# The table is at the end of scaling-JOB.log here, with page and JSON in bench/scaling-JOB. Options
# of `harness bench scaling` go with the flags (--minutes 30, --ranks 8,16,32). What your site needs: see
# slurm/README.md.
#
#SBATCH --job-name=scaling
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=01:00:00
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

in_job || die "give it to sbatch: sbatch --nodes 4 $0 ..."
set_args configs/resnet50_90ep.yaml "$@"
set_nproc
all=$((nproc * SLURM_JOB_NUM_NODES))
numbers=1
for ((n = 2; n < all; n *= 2)); do numbers+=",$n"; done
[ "$all" -eq 1 ] || numbers+=",$all"
set_variables
run_step python -m harness bench scaling --ranks "$numbers" --per-node "$nproc" \
    --launch "bash $home/slurm/ranks.sh" --host "${SLURMD_NODENAME:-$(hostname)}" --out "bench/scaling-$SLURM_JOB_ID" "${args[@]}"
