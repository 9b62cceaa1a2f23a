#!/usr/bin/env bash
# Starts so many ranks of a program within the job that this runs in, on as few of its nodes as hold
# them. Not for sbatch: for `harness bench sweep --launch slurm/ranks.sh`, as scaling.sh has it.
#
#   slurm/ranks.sh RANKS PROGRAM ...
#
# NPROC_PER_NODE ranks stand on a node; by default as many as it has GPUs.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
source "$here/common.sh"

[ -n "${SLURM_JOB_ID:-}" ] || die "slurm/ranks.sh runs within a job; for a job of its own, see scaling.sh"
ranks=$1 nproc="${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}"
[ -n "$nproc" ] || die "Slurm gave no GPU: give --gpus-per-node, or set NPROC_PER_NODE"
nodes=$(((ranks + nproc - 1) / nproc))
if [ "$nodes" -gt "$SLURM_JOB_NUM_NODES" ]; then
    die "$ranks ranks are more than $SLURM_JOB_NUM_NODES nodes hold at $nproc each"
fi
if [ "$nodes" -eq 1 ]; then nproc=$ranks; fi
[ $((nodes * nproc)) -eq "$ranks" ] || die "$ranks ranks cannot be shared out on $nodes nodes"
# The first of them: there, this shell sees which ports are free.
export SLURM_JOB_NUM_NODES=$nodes
set_variables
torchrun_on_each_node 0 "${@:2}"
