#!/usr/bin/env bash
# ResNet-50, 90 epochs, on several nodes with 8 GPUs each. Goyal et al.'s hour (arXiv:1706.02677): 256
# GPUs, global batch 8192, 32 images per GPU:
#
#   sbatch --partition gpu --nodes 32 slurm/resnet50_multinode.sh --train.global-batch 8192 \
#       --data.train /imagenet/train --data.val /imagenet/val
#
# The learning rate follows from the global batch. Started without sbatch it checks the flags first,
# so that mistakes show before anything is queued:
#
#   slurm/resnet50_multinode.sh --partition gpu --nodes 32 --train.global-batch 8192 ...
#
# Five seeds: --array=0-4. What your site needs: see slurm/README.md. The log is resnet50-JOB.log here.
#
#SBATCH --job-name=resnet50
#SBATCH --nodes=2
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
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

harness_train "$0" configs/resnet50_90ep.yaml "$@"
