# Sourced by the scripts in this folder: what every job of the harness sets, checks and does.
#
# What your site needs is set in HARNESS_* variables, in your shell or in a file slurm/site.sh (not in
# git), which is read here if it is there: slurm/README.md lists them.
#
# launch/ending.py decides how a job ends, by the run folder's `state`: finished: COMPLETED; stopped (by
# preemption or near the time limit, after saving): requeued; failed: FAILED.

# A log that cannot be written, as on a full disk, must not end a job under `set -e`.
echo() {
    builtin echo "$@" || true
}

die() {
    echo "error: $*" >&2
    exit 2
}

home=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
if [ -f "$home/slurm/site.sh" ]; then source "$home/slurm/site.sh"; fi
if [ -z "${HARNESS_ENV:-}" ] && [ -f "$home/.venv/bin/activate" ]; then
    HARNESS_ENV="$home/.venv/bin/activate"
fi
# Activation scripts may use unset variables and commands that fail.
if [ -n "${HARNESS_ENV:-}" ]; then set +eu; source "$HARNESS_ENV"; set -eu; fi
# A checkout needs no installation of itself.
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"
# With sbatch's --export, srun would pass on no more than that names.
export SLURM_EXPORT_ENV=ALL
# Within a step, of `srun --pty bash`, another would wait for its cores for ever.
if [ -n "${SLURM_STEP_ID:-}" ]; then export SLURM_OVERLAP=1; fi
# The cores of a node's only task: sbatch's --cpus-per-task, or all that the job has on that node (nodes may
# have unequally many), of which Slurm would bind the task to one.
cores=(--cpu-bind=none)
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then cores=(--cpus-per-task="$SLURM_CPUS_PER_TASK"); fi
for name in NPROC_PER_NODE HARNESS_SAVE_S HARNESS_MAX_RESTARTS HARNESS_MAX_REQUEUES HARNESS_DOCTOR_S; do
    [[ ${!name:-0} =~ ^[0-9]+$ ]] || die "$name: must be a whole number, not ${!name}"
done

# in_job
# Whether this runs in a job of Slurm; ends if that cannot be used.
in_job() {
    local over=${SLURM_JOB_NODELIST:-over}
    [ -n "${SLURM_JOB_ID:-}" ] || return
    case $(scontrol show job "$SLURM_JOB_ID" 2>&1) in
    *JobState=RUNNING* | *JobState=CONFIGURING* | *JobState=COMPLETING*) ;;
    *JobState=* | *"Invalid job id"*) over=over ;;
    esac
    [ "$over" != over ] || die "SLURM_JOB_ID: this shell is not in job $SLURM_JOB_ID, or no longer; unset SLURM_JOB_ID"
    check_python
}

check_python() {
    local why
    why=$(python -c 'import harness.config.load' 2>&1) ||
        die "$(command -v python || echo python): ${why##*$'\n'}; let HARNESS_ENV name a file that activates another"
}

set_nproc() {
    local asked=${SLURM_GPUS_PER_NODE:-} # type:number; all that a shell of salloc knows
    nproc=${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-${asked##*:}}}
    [ -n "$nproc" ] || die "Slurm gave no GPU: give --gpus-per-node, or set NPROC_PER_NODE"
}

set_variables() {
    local user cache
    user=$(id -un 2>/dev/null) || user=$(id -u)
    cache="${HARNESS_LOCAL:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/imagenet-harness-$user"
    # Compiled kernels go to the node's own disk: on a network disk, ranks wait for each other and collide.
    # The folder is not per job, so that the next job on this node can use them.
    export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}"
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$cache/triton}"
    # Other libraries than torch (see engine.threads) must not start a thread per core in each rank.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # The log is complete even if the job is killed.
    export PYTHONUNBUFFERED=1
    # A crash in C (a dead driver, a file that shrank) leaves a stack.
    export PYTHONFAULTHANDLER=1
    # NCCL prints its version and errors; INFO would print pages per rank.
    export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    # Time to save after a signal, s. Only torch 2.12 and later have it; before, it is 30 s.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-90}"
    # At the end, torchrun's agents print pages of C++ frames as the first of them has exited already.
    export TORCH_CPP_LOG_LEVEL="${TORCH_CPP_LOG_LEVEL:-ERROR}"
    # Nodes with several networks: without a name, NCCL or gloo may take the slow or a dead one.
    if [ -n "${HARNESS_NIC:-}" ]; then
        export NCCL_SOCKET_IFNAME="$HARNESS_NIC" GLOO_SOCKET_IFNAME="$HARNESS_NIC"
    fi
    # Each mapped image is an open file.
    ulimit -n "$(ulimit -Hn)"
    # Eight crashing ranks would fill the disk with core files of all their memory.
    ulimit -c 0
}

check_limits() {
    local files shm_kib
    files=$(ulimit -n)
    if [ "$files" != unlimited ] && [ "$files" -lt 8192 ]; then
        echo "warning: only $files open files per process; ask your site for 65536"
    fi
    # NCCL and loader workers exchange data through it; if it is too small, they die of bus errors.
    shm_kib=$(df --output=avail /dev/shm 2>/dev/null | tail -1) || shm_kib=0
    if [ "${shm_kib:-0}" -lt $((1024 * 1024)) ]; then
        echo "warning: /dev/shm has $((${shm_kib:-0} / 1024)) MiB free; a container needs --ipc=host"
    fi
    # InfiniBand pins memory.
    if [ -d /dev/infiniband ] && [ "$(ulimit -l)" != unlimited ]; then
        echo "warning: locked memory is limited to $(ulimit -l) KiB; NCCL may fall back to sockets"
    fi
}

# set_args CONFIG.yaml [ANOTHER.yaml] [--section.key value ...]
# Sets `args`, the arguments for launch/train.py. In a job array the seed is the task's number.
set_args() {
    case ${2:-} in *.yaml) shift ;; *) set -- "$home/$1" "${@:2}" ;; esac
    args=("$@")
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ] && [[ " $* " != *" --run.seed"[\ =]* ]]; then
        args+=(--run.seed "$SLURM_ARRAY_TASK_ID")
    fi
}

# is_ours ARGUMENT
# Whether sbatch's options end before it: only the harness's flags have a dot in their name.
is_ours() { [[ $1 == *.yaml || ${1%%=*} =~ ^--[a-z]+\.[a-z] ]]; }

# submit SCRIPT CONFIG.yaml [sbatch options] [ANOTHER.yaml] [--section.key value ...]
# For a script that was started without sbatch: checks the config, then queues the script.
submit() {
    local script=$1 config=$2 options=()
    shift 2
    check_python
    while [ $# -gt 0 ] && ! is_ours "$1"; do
        options+=("$1")
        shift
    done
    set_args "$config" "$@"
    python "$home/launch/check.py" "${args[@]}" >/dev/null
    exec sbatch "${options[@]}" "$script" "$@"
}

# Slurm signals this shell (--signal=B:USR1@...), which passes USR1 on: the ranks save and exit with 0, and
# so does torchrun, which ignores USR1. TERM is only counted, since Slurm sends it to the ranks itself.
signals=0
signaled_at=
step=
trap 'signals=$((signals + 1)) signaled_at=${signaled_at:-$(date +%s)}; if [ -n "$step" ]; then tell_ranks & fi' USR1
trap 'signals=$((signals + 1))' TERM

# srun passes USR1 on to all tasks (after TERM it would kill them). Repeated, since ranks that are starting
# up ignore it. If ranks have not saved in time, requeue anyway and continue from the last checkpoint: at
# the time limit Slurm would end the job for good.
tell_ranks() {
    local began=$SECONDS
    while kill -USR1 "$step" 2>/dev/null; do
        [ $((SECONDS - began)) -lt "${HARNESS_SAVE_S:-90}" ] || end_job
        sleep 5
    done
}

# run_step COMMAND ...
# Runs it in the background, since bash handles signals only while it waits.
run_step() {
    local code count
    "$@" &
    step=$!
    if [ "$signals" -gt 0 ]; then tell_ranks & fi
    while :; do
        count=$signals code=0
        wait "$step" || code=$?
        [ "$signals" != "$count" ] || break
    done
    step=
    return "$code"
}

# on_each_node COMMAND ...
# Runs one task per node. If one fails, the others end at once. For run_step: exec makes srun the process
# that gets its signals.
on_each_node() {
    exec srun --relative=0 --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        "${cores[@]}" --kill-on-bad-exit=1 "$@"
}

# torchrun_on_each_node RESTARTS PROGRAM ...
# Runs one torchrun per node.
torchrun_on_each_node() {
    local options=(--nproc-per-node="$nproc" --max-restarts="$1"
        --signals-to-handle=SIGTERM,SIGINT,SIGHUP,SIGUSR2)
    # Each restart needs a new store: in a shared one, ranks find the addresses of ranks that died, and
    # wait for them (torch 2.14).
    if [ "$1" -gt 0 ]; then export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; fi
    if [ "$SLURM_JOB_NUM_NODES" -eq 1 ]; then
        # The system chooses the port: jobs that share the node cannot collide. Without an address,
        # torchrun waits for ever where the node's own name does not resolve.
        options+=(--standalone --local-addr=127.0.0.1)
    else
        local first port
        # This shell runs on the first node, so that it can see which ports are free there.
        first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
        port=$(python "$home/launch/slurm.py" port)
        options+=(--nnodes="$SLURM_JOB_NUM_NODES" --rdzv-backend=c10d
            --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}")
    fi
    # Say which node hosts the store: torchrun would guess from names. Peers use a node's name in Slurm.
    on_each_node bash -c 'trap "" USR1
        launch=$1 binding=$(python "$1/numa.py" "$2")
        shift 2
        if [ "$SLURM_STEP_NUM_NODES" -gt 1 ]; then
            is_host=$([ "$SLURM_NODEID" = 0 ] && echo true || echo false)
            set -- --rdzv-conf="is_host=$is_host,join_timeout=300" \
                --local-addr="$SLURMD_NODENAME" "$@"
            nic=${GLOO_SOCKET_IFNAME:-$(python "$launch/slurm.py" interface)}
            if [ -n "$nic" ]; then export GLOO_SOCKET_IFNAME=$nic; fi
        fi
        exec python -m torch.distributed.run $binding "$@"' \
        torchrun "$home/launch" "$nproc" "${options[@]}" "${@:2}"
}

# end_job
# Prints why the job ended, and requeues it if it should continue. Signals must not end this meanwhile.
end_job() {
    trap '' USR1 TERM
    exec python "$home/launch/ending.py" "$run" --before "$before" --signals "$signals" \
        ${signaled_at:+--signaled-at="$signaled_at"} ${HARNESS_MAX_REQUEUES:+--max-requeues="$HARNESS_MAX_REQUEUES"}
}

# harness_train SCRIPT CONFIG.yaml [ANOTHER.yaml] [--section.key value ...]
harness_train() {
    in_job || submit "$@"
    local run nproc before scratch
    if [ $# -gt 2 ] && ! is_ours "$3"; then
        die "$3: options of sbatch have no effect in job $SLURM_JOB_ID; leave them out, or: sbatch OPTIONS SCRIPT ..."
    fi
    shift
    set_args "$@"
    run=$(python "$home/launch/check.py" "${args[@]}")
    run=${run##*$'\n'} # before it, that a lease was waited for
    set_nproc
    echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $run"
    set_variables
    check_limits
    before=$(stat -c '%i %.9Y' "$run/state" 2>/dev/null || echo none)
    scratch=$(mktemp -d)
    # On several nodes, each restart of one also counts on all others, as their connections break:
    # hence three.
    prepare && run_step torchrun_on_each_node "${HARNESS_MAX_RESTARTS:-3}" \
        "$home/launch/train.py" "${args[@]}" || true
    rm -r "$scratch"
    end_job
}

# prepare
# Prepares training: runs the doctor, and copies the images to the nodes. Writes files to $scratch.
prepare() {
    if [ "${HARNESS_PREFLIGHT:-on}" != off ]; then
        # On all ranks together, as in training; it expects the GPUs that Slurm gave. torchrun reports a red
        # doctor as a crash, which is kept out of the log.
        if ! run_step torchrun_on_each_node 0 -m harness doctor "${args[@]}" \
            >"$scratch/doctor" 2>"$scratch/crash"; then
            grep -q ^red "$scratch/doctor" || cat "$scratch/crash" >&2
            cat "$scratch/doctor"
            [ "$signals" -gt 0 ] ||
                echo "error: the doctor is red; HARNESS_PREFLIGHT=off goes without it" >&2
            return 1
        fi
        cat "$scratch/doctor"
    fi
    if [ -n "${HARNESS_STAGE:-}" ]; then
        # The copies have the same names on all nodes, and one node writes the flags.
        run_step on_each_node python "$home/launch/stage.py" "$HARNESS_STAGE" \
            --flags-to "$scratch/flags" "${args[@]}" || return
        mapfile -t -O "${#args[@]}" args <"$scratch/flags"
    fi
    [ "$signals" -eq 0 ]
}
