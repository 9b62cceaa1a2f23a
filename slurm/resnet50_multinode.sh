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

# Slurm runs a copy of this file out of its spool, but knows where the file itself is.
here=$(dirname "$(realpath "$0")")
if [ ! -f "$here/common.sh" ]; then
    here=$(scontrol show job "$SLURM_JOB_ID" | sed -n 's|^ *Command=\(.*\)/.*\.sh.*|\1|p' | sort -u)
fi
source "$here/common.sh"

harness_train "$0" configs/resnet50_90ep.yaml "$@"
