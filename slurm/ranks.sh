#!/usr/bin/env bash
# Starts a number of ranks of a program within the current job, on as few of its nodes as possible.
# Not for sbatch: for `harness bench sweep --launch slurm/ranks.sh`, as scaling.sh has it.
#
#   slurm/ranks.sh RANKS PROGRAM ...
#
# A node gets NPROC_PER_NODE ranks; by default one per GPU.
set -euo pipefail

here=$(dirname "$(realpath "$0")")
source "$here/common.sh"

[ -n "${SLURM_JOB_ID:-}" ] || die "slurm/ranks.sh runs within a job; for a job of its own, see scaling.sh"
ranks=$1
set_nproc
nodes=$(((ranks + nproc - 1) / nproc))
if [ "$nodes" -gt "$SLURM_JOB_NUM_NODES" ]; then
    die "$ranks ranks are more than $SLURM_JOB_NUM_NODES nodes hold at $nproc each"
fi
if [ "$nodes" -eq 1 ]; then nproc=$ranks; fi
[ $((nodes * nproc)) -eq "$ranks" ] || die "$ranks ranks cannot be shared out on $nodes nodes"
# torchrun uses the first nodes: this shell runs on the first one, and sees its free ports.
export SLURM_JOB_NUM_NODES=$nodes
set_variables
torchrun_on_each_node 0 "${@:2}"
