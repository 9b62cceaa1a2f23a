# Sourced by the scripts beside it: what every job of the harness sets, checks and does.
#
# What your site needs is set in HARNESS_* variables, in your shell or in a file slurm/site.sh (not in
# git), which is read here if it is there: slurm/README.md lists them.
#
# A job ends as its run folder's `state` says: finished, COMPLETED; stopped (by preemption or near the
# time limit, after saving), back into the queue; failed, FAILED.

home=$(dirname "$(dirname "$(realpath "${BASH_SOURCE[0]}")")")
if [ -f "$home/slurm/site.sh" ]; then source "$home/slurm/site.sh"; fi
if [ -z "${HARNESS_ENV:-}" ] && [ -f "$home/.venv/bin/activate" ]; then
    HARNESS_ENV="$home/.venv/bin/activate"
fi
# Other people's files may use unset variables and commands that fail.
if [ -n "${HARNESS_ENV:-}" ]; then set +eu; source "$HARNESS_ENV"; set -eu; fi
# A checkout needs no installation of itself.
export PYTHONPATH="$home${PYTHONPATH:+:$PYTHONPATH}"

die() {
    echo "error: $*" >&2
    exit 1
}

set_variables() {
    local user cache
    user=$(id -un)
    cache="${HARNESS_LOCAL:-${SLURM_TMPDIR:-${TMPDIR:-/tmp}}}/imagenet-harness-$user"
    # Compiled kernels on the node's own disk: on a network disk, ranks wait and trip over each other.
    # Not per job, so that the next one on this node finds them warm.
    export TORCHINDUCTOR_CACHE_DIR="${TORCHINDUCTOR_CACHE_DIR:-$cache/inductor}"
    export TRITON_CACHE_DIR="${TRITON_CACHE_DIR:-$cache/triton}"
    # What is not torch (it has engine.threads) shall not start a thread per core in each rank.
    export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
    # The log is whole up to a kill.
    export PYTHONUNBUFFERED=1
    # A crash in C (a dead driver, a file that shrank) leaves a stack.
    export PYTHONFAULTHANDLER=1
    # NCCL says its version and what went wrong; INFO would be pages per rank.
    export NCCL_DEBUG="${NCCL_DEBUG:-WARN}"
    # Who is told to end gets time to save. An option only from torch 2.12 on; before, it is 30 s.
    export TORCH_ELASTIC_SHUTDOWN_TIMEOUT="${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-90}"
    # When all is done, torchrun's agents warn with pages of C++ frames that the first of them has gone.
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
    # NCCL and loader workers exchange data through it; too small shows as a bus error.
    shm_kib=$(df --output=avail /dev/shm 2>/dev/null | tail -1) || shm_kib=0
    if [ "${shm_kib:-0}" -lt $((1024 * 1024)) ]; then
        echo "warning: /dev/shm has $((${shm_kib:-0} / 1024)) MiB free; a container needs --ipc=host"
    fi
    # InfiniBand pins memory.
    if [ -d /dev/infiniband ] && [ "$(ulimit -l)" != unlimited ]; then
        echo "warning: locked memory is limited to $(ulimit -l) KiB; NCCL may fall back to sockets"
    fi
}

# set_words CONFIG.yaml [ANOTHER.yaml] [--section.key value ...]
# `words`: what launch/train.py takes. The seed of a job array's tasks is their number.
set_words() {
    case ${2:-} in *.yaml) shift ;; *) set -- "$home/$1" "${@:2}" ;; esac
    words=("$@")
    if [ -n "${SLURM_ARRAY_TASK_ID:-}" ] && [[ " $* " != *" --run.seed"[\ =]* ]]; then
        words+=(--run.seed "$SLURM_ARRAY_TASK_ID")
    fi
}

# submit SCRIPT CONFIG.yaml [sbatch options] [ANOTHER.yaml] [--section.key value ...]
# The script was started by hand: nothing is queued before the config is found good.
submit() {
    local script=$1 config=$2 options=()
    shift 2
    # Only the harness's flags have a dot in their name.
    while [ $# -gt 0 ] && ! [[ $1 == *.yaml || ${1%%=*} =~ ^--[a-z]+\.[a-z] ]]; do
        options+=("$1")
        shift
    done
    set_words "$config" "$@"
    python "$home/launch/check.py" "${words[@]}" >/dev/null
    exec sbatch "${options[@]}" "$script" "$@"
}

# Signals come to this shell (--signal=B:USR1@...). The ranks are told by USR1: they save and end well,
# and torchrun, which ignores it, ends well with them. TERM is Slurm's, which tells the ranks itself.
heard=0
step=
trap 'heard=$((heard + 1)); if [ -n "$step" ]; then tell_ranks & fi' USR1
trap 'heard=$((heard + 1))' TERM

# srun hands USR1 to all tasks (at TERM it would kill them). Again and again, since ranks that are only
# starting up heed none. Those that have not saved in time go on from the last checkpoint: at the time
# limit Slurm would end the job for good.
tell_ranks() {
    local began=$SECONDS
    while kill -USR1 "$step" 2>/dev/null; do
        [ $((SECONDS - began)) -lt "${HARNESS_SAVE_S:-90}" ] || requeue
        sleep 5
    done
}

# run_step COMMAND ...
# In the background, since bash heeds a signal only while it waits.
run_step() {
    local code before
    "$@" &
    step=$!
    if [ "$heard" -gt 0 ]; then tell_ranks & fi
    while :; do
        before=$heard code=0
        wait "$step" || code=$?
        [ "$heard" != "$before" ] || break
    done
    step=
    return "$code"
}

# on_each_node COMMAND ...
# One task per node with all cores of the job there: those of Slurm's default would be one. If one
# fails, the others end at once. For run_step: srun takes the place of the shell that was started.
on_each_node() {
    exec srun --relative=0 --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 \
        --cpus-per-task="${SLURM_CPUS_PER_TASK:-$SLURM_CPUS_ON_NODE}" --kill-on-bad-exit=1 "$@"
}

# torchrun_on_each_node RESTARTS PROGRAM ...
# One torchrun per node.
torchrun_on_each_node() {
    local options=(--nproc-per-node="$nproc" --max-restarts="$1"
        --signals-to-handle=SIGTERM,SIGINT,SIGUSR2)
    # Each restart meets in a store of its own: in one that is shared, ranks find the addresses of those
    # who died, and wait for them (torch 2.14).
    if [ "$1" -gt 0 ]; then export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1; fi
    if [ "$SLURM_JOB_NUM_NODES" -eq 1 ]; then
        # The system chooses the port: jobs that share the node cannot collide.
        options+=(--standalone)
    else
        local first port
        # This shell runs on the first node, so that it can see which ports are free there.
        first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -1)
        port=$(python "$home/launch/slurm.py" port)
        options+=(--nnodes="$SLURM_JOB_NUM_NODES" --rdzv-backend=c10d
            --rdzv-endpoint="$first:$port" --rdzv-id="$SLURM_JOB_ID-${SLURM_RESTART_COUNT:-0}")
    fi
    # Who listens is said, not guessed from names; and peers find a node by its name in Slurm.
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

# requeue
# By array and task: of an array's last task, the job id alone would mean the whole array. Only a job
# that runs: Slurm would take back one that the user has cancelled, too.
requeue() {
    local job="${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID}" now
    job="${job:-$SLURM_JOB_ID}"
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${HARNESS_MAX_REQUEUES:-100}" ]; then
        die "stopped, and requeued $SLURM_RESTART_COUNT times already; the same command goes on"
    fi
    now=$(scontrol show job --oneliner "$job" | sed -n 's/.* JobState=\([A-Z_]*\).*/\1/p')
    case $now in
        RUNNING) scontrol requeue "$job" || die "stopped, and not requeued; the same command goes on" ;;
        PENDING | REQUEUED) ;; # somebody else has requeued it
        *) die "stopped, and ended by Slurm ($now); the same command goes on" ;;
    esac
    echo "stopped: back into the queue, to go on"
    trap - USR1 TERM
    exec sleep 600 # Slurm ends it; to end before that would complete the job
}

# harness_train SCRIPT CONFIG.yaml [ANOTHER.yaml] [--section.key value ...]
harness_train() {
    [ -n "${SLURM_JOB_ID:-}" ] || submit "$@"
    local run nproc before state told
    shift
    set_words "$@"
    run=$(python "$home/launch/check.py" "${words[@]}")
    echo "job $SLURM_JOB_ID, start $((${SLURM_RESTART_COUNT:-0} + 1)), on $SLURM_JOB_NODELIST: $run"
    nproc="${NPROC_PER_NODE:-${SLURM_GPUS_ON_NODE:-}}"
    [ -n "$nproc" ] || die "Slurm gave no GPU: give --gpus-per-node, or set NPROC_PER_NODE"
    set_variables
    check_limits
    before=$(stamp "$run/state")
    told=$(mktemp -d)
    # On several nodes, a restart of one costs one of each other's too (by the connections that break),
    # hence three.
    prepare && run_step torchrun_on_each_node "${HARNESS_MAX_RESTARTS:-3}" \
        "$home/launch/train.py" "${words[@]}" || true
    rm -r "$told"
    state=$(cat "$run/state" 2>/dev/null) || state=none
    if [ "$state" = finished ]; then exit 0; fi
    # What an earlier start left says nothing of this one.
    if [ "$before" = "$(stamp "$run/state")" ]; then state="not begun"; fi
    # Who was told to end and had nothing to save yet, or no time for it, goes on all the same.
    if [ "$state" = stopped ] || [ "$heard" -gt 0 ]; then requeue; fi
    if [ "$state" = running ]; then state="ended without a word; was it killed? see above"; fi
    echo "job $SLURM_JOB_ID: $state" >&2
    if [ "$state" != "not begun" ]; then python -m harness show "$run" >&2 || true; fi
    exit 1
}

stamp() {
    stat -c '%i %y' "$1" 2>/dev/null || echo none
}

# prepare
# What comes before training: each node is looked at, and gets the images. Leaves files in $told.
prepare() {
    if [ "${HARNESS_PREFLIGHT:-on}" != off ]; then
        # All ranks together, as they will train. It expects the GPUs that Slurm gave. If it is red,
        # torchrun reports that as a crash: the log is spared that.
        if ! run_step torchrun_on_each_node 0 -m harness doctor "${words[@]}" \
            >"$told/doctor" 2>"$told/crash"; then
            grep -q ^red "$told/doctor" || cat "$told/crash" >&2
            cat "$told/doctor"
            [ "$heard" -gt 0 ] ||
                echo "error: the doctor is red; HARNESS_PREFLIGHT=off goes without it" >&2
            return 1
        fi
        cat "$told/doctor"
    fi
    if [ -n "${HARNESS_STAGE:-}" ]; then
        # The folders' names are the same on all nodes, and one of them prints the flags.
        run_step on_each_node python "$home/launch/stage.py" "$HARNESS_STAGE" \
            --flags-to "$told/flags" "${words[@]}" || return
        mapfile -t -O "${#words[@]}" words <"$told/flags"
    fi
    [ "$heard" -eq 0 ]
}
