#!/usr/bin/env bash
# ResNet-50, 90 epochs, on one node with 8 GPUs. Flags pass through to launch/train.py:
#
#   sbatch --partition gpu slurm/resnet50_8gpu.sh --data.train /imagenet/train --data.val /imagenet/val
#
#SBATCH --job-name=resnet50
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail

# Slurm runs a copy of this file: the checkout is where the job was submitted from.
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"

# One torchrun starts a process per GPU; port 0 lets the system choose, so that two jobs on one node
# cannot collide.
exec torchrun --standalone --nproc-per-node="${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-8}}" \
    launch/train.py configs/resnet50_90ep.yaml "$@"
