#!/usr/bin/env bash
# Checks all nodes at the same time, each by itself, and prints one table with the outliers:
#
#   sbatch --partition gpu --nodes 16 slurm/doctor.sh
#   sbatch --partition gpu --nodelist gpu[01-04] slurm/doctor.sh configs/resnet50_90ep.yaml \
#       --data.train /imagenet/train --data.val /imagenet/val
#
# With a config and flags it checks what that run would use: its data, its run folder. The table is
# at the end of doctor-JOB.log here, each node's JSON in doctor-JOB/. A red node makes the job FAILED.
# In an allocation of your own (salloc) start it as it is. What your site needs: see slurm/README.md.
#
#SBATCH --job-name=doctor
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=00:10:00
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

in_job || submit "$0" configs/quickstart.yaml "$@"
set_args configs/quickstart.yaml "$@"
set_variables
limit_s="${HARNESS_DOCTOR_S:-180}"

folder="doctor-$SLURM_JOB_ID"
mkdir -p "$folder"
files=()
for node in $(scontrol show hostnames "$SLURM_JOB_NODELIST"); do
    files+=("$folder/$node.json")
    # A node that hangs must not hold up the report on the others.
    (timeout --kill-after=10 "$limit_s" srun --nodes=1 --ntasks=1 --nodelist="$node" \
        "${cores[@]}" python -m harness doctor --json "${args[@]}" ||
        [ $? -lt 124 ] || echo "no answer within $limit_s s") >"${files[-1]}" 2>&1 &
done
wait
python -m harness doctor nodes "${files[@]}"
