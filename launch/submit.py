"""Submit a training to Slurm: one task per GPU, requeued until it has finished, no torchrun inside.

python launch/submit.py configs/resnet50_90ep.yaml --nodes 4 --gpus-per-node 8 --partition gpu \\
    --time 8h --data.train /imagenet/train --data.val /imagenet/val
"""

from __future__ import annotations

import argparse
import io
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

# Run as a file, a checkout needs no installation of itself.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from submitit import JobEnvironment, LocalExecutor, SlurmExecutor
from submitit.core.core import Job
from submitit.core.utils import FailedJobError, FailedSubmissionError, JobPaths
from submitit.helpers import Checkpointable, TorchDistributedEnvironment

from harness.config import load
from harness.config.rules import per_rank
from harness.errors import (
    EXIT_FAILED,
    EXIT_GOOD,
    EXIT_INTERRUPTED,
    BadInput,
    HarnessError,
)
from harness.system.console import count, duration, err, out
from launch import ending, options, resources, slurm, sweep, worker
from launch.sweep import Plan

ROOT = Path(__file__).resolve().parent.parent


class Work(Checkpointable):  # type: ignore[misc]
    """What each task of a job does, at the place that Slurm or the local executor gave it.

    Submitit's own handler of preemption (requeue, as this is checkpointable) covers the moments
    before the call. From then on the harness's handler has the work saved at the same step on all
    ranks, and launch/ending.py requeues once no rank is left that a signal could kill meanwhile.
    """

    def __init__(self, config: Path, *, on_gpu: bool) -> None:
        self.config, self.on_gpu = config, on_gpu

    def __call__(self) -> None:
        """Train to the end; else the process ends here."""
        job = JobEnvironment()
        start = int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        # Below the ports of outgoing connections; its own for each job and start.
        environ = {**os.environ, "SLURM_JOB_ID": job.raw_job_id}
        os.environ["MASTER_PORT"] = str(slurm.port(environ))
        # All GPUs stay visible: NCCL wants to see them, World picks its own. Overwriting, since the
        # environment of whoever submitted came along, and may be that of another job.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        worker.work(
            self.config,
            ending.place(job.paths.folder, job.job_id, start),
            rank=job.global_rank,
            on_gpu=self.on_gpu,
            watch=job.cluster == "local",
        )


class Slurm(SlurmExecutor):  # type: ignore[misc]
    """Submitit's executor, which also says what it would submit, with or without a Slurm here."""

    def script(self, runs: int) -> str:
        """The text that sbatch gets."""
        whole = Slurm(self.folder)
        whole.parameters = self.parameters | ({"map_count": runs} if runs > 1 else {})
        return str(whole._make_submission_file_text(whole._submitit_command_str, ""))

    @classmethod
    def affinity(cls) -> int:
        """That it can be used; whether there is an sbatch is asked when it comes to it."""
        return 2


def main() -> None:
    """Check, then submit, show or run; errors are one line and an exit code."""
    try:
        code = submit(sys.argv[1:])
    except HarnessError as error:
        err.print(f"error: {' '.join(str(error).split())}")
        code = error.exit_code
    sys.exit(code)


def submit(words: Sequence[str]) -> int:
    """Do what the words say; the exit code.

    Raises:
        BadInput: before anything is queued; nothing is left.
    """
    asked, settings = options.parse(words)
    plan = sweep.plan(settings, asked.sweep, asked.seeds, time.strftime("%Y%m%d-%H%M%S"))
    for config in plan.runs:
        if config.run.mode == "train":
            per_rank(config.train.global_batch, asked.nodes * resources.ranks_per_node(asked))
        if config.run.dry_run:
            raise BadInput("run.dry_run: --dry-run shows the plan and submits nothing")
    if asked.local and asked.nodes > 1:
        raise BadInput("--local: is for this machine alone; leave out --nodes")
    executor = _executor(plan, asked)
    if asked.dry_run:
        out.print(executor.script(len(plan.runs)))
        _tell(
            plan,
            asked,
            ["JOB" if len(plan.runs) == 1 else f"JOB_{n}" for n in range(len(plan.runs))],
        )
        return EXIT_GOOD
    if asked.local:
        return _run_here(plan, asked)
    return _queue(plan, asked, executor)


def _executor(plan: Plan, asked: argparse.Namespace) -> Slurm:
    """What submits, with all parameters of sbatch and srun; touches no disk."""
    end = shlex.join([
        sys.executable, str(ROOT / "launch" / "ending.py"), str(plan.folder.absolute()),
        f"--max-restarts={asked.max_restarts}", f"--max-requeues={asked.max_requeues}",
    ])  # fmt: skip
    executor = Slurm(plan.folder)
    executor.update_parameters(
        job_name=plan.stem,
        array_parallelism=asked.parallel,
        stderr_to_stdout=True,
        wckey=None,  # by default submitit's name, which a site may refuse
        setup=[
            # Variables, limits and site's file as in the scripts of slurm/. A command that fails
            # must not end the script before its end.
            f"source {shlex.quote(str(ROOT / 'slurm' / 'common.sh'))}",
            "set +eu; trap - USR1 TERM",
            "set_variables",
            "check_limits",
            # Else a rank would have one core. Old Slurms read the first, new ones the second.
            "export SLURM_CPUS_PER_TASK=$((SLURM_CPUS_ON_NODE / SLURM_NTASKS_PER_NODE))",
            "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK",
        ],
        # One rank that fails ends all. Each may use the cores of all ranks of its node, as under
        # torchrun: the harness shares them out itself.
        srun_args=["--kill-on-bad-exit=1", "--cpu-bind=none", "--open-mode=append"],
        teardown=["code=$?", f"exec {end} --code=$code"],
        **resources.parameters(asked),
    )
    return executor


def _queue(plan: Plan, asked: argparse.Namespace, executor: Slurm) -> int:
    """One job, or one array; nothing is left behind if Slurm refuses it."""
    if shutil.which("sbatch") is None:
        raise BadInput("sbatch: not found; submit on a login node, or try it here: --local")
    with _written(plan, asked) as works:
        try:
            with redirect_stderr(io.StringIO()):  # submitit says there what it raises, too
                jobs = executor.submit_array(works)
        except (FailedJobError, FailedSubmissionError) as error:
            lines = str(error).replace("sbatch: error: ", "").splitlines()
            raise BadInput(f"sbatch: {'; '.join(lines)}") from None
    _tell(plan, asked, [job.job_id for job in jobs])
    return EXIT_GOOD


@contextmanager
def _written(plan: Plan, asked: argparse.Namespace) -> Iterator[list[Work]]:
    """The configs, frozen: what was checked will run, whatever is edited while the job waits.

    The folder is removed again if nothing can be submitted.
    """
    try:
        plan.folder.mkdir(parents=True)
    except FileExistsError:
        raise BadInput(f"{plan.folder}: was submitted in this second; give it again") from None
    except OSError as error:
        raise BadInput(
            f"{plan.folder}: {error.strerror}; set --run.root to a folder you can write"
        ) from None
    try:
        for config, file in zip(plan.runs, plan.config_files, strict=True):
            file.write_text(load.dump(config), encoding="utf-8")
        yield [Work(file, on_gpu=asked.gpus_per_node > 0) for file in plan.config_files]
    except BaseException:
        shutil.rmtree(plan.folder)
        raise


def _tell(plan: Plan, asked: argparse.Namespace, jobs: list[str]) -> None:
    """What was queued, where it works, and what to type next."""
    each = resources.ranks_per_node(asked)
    kind = "GPU" if asked.gpus_per_node else "CPU rank"
    job = jobs[0].split("_")[0]
    rows = [
        ("job", f"{job}: {count(len(jobs), 'run')} on {count(asked.nodes, 'node')} x "
         f"{count(each, kind)}, up to {duration(60 * asked.time)} at a time"),
    ]  # fmt: skip
    for name, folder in zip(jobs, plan.run_folders, strict=True):
        log = JobPaths(plan.folder, name, 0).stdout
        rows += [("run", str(folder)), ("log", str(log))]
    rows += [
        ("ranks' logs", f"{plan.folder}/{jobs[0]}_RANK_log.out"),
        ("config", f"{plan.config_files[0]}, as it will run"),
        ("follow", f"squeue --job {job}; tail -F {log}; harness show {folder}"),
        ("end", f"scancel {job}"),
    ]
    out.print("\n".join(f"{name:>12}: {value}" for name, value in rows))


def _run_here(plan: Plan, asked: argparse.Namespace) -> int:
    """The runs one after the other by submitit's local executor; the first bad exit code."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    )
    with _written(plan, asked) as works:
        executor = LocalExecutor(plan.folder)
    executor.update_parameters(
        gpus_per_node=asked.gpus_per_node, tasks_per_node=resources.ranks_per_node(asked),
        timeout_min=asked.time, signal_delay_s=asked.signal_delay_s, stderr_to_stdout=True,
    )  # fmt: skip
    codes = [_run_one(executor, work) for work in works]
    return next((code for code in codes if code), EXIT_GOOD)


def _run_one(executor: LocalExecutor, work: Work) -> int:
    """One run, started again near its time limit as Slurm would; its exit code."""
    while True:
        # Ctrl-C is for the ranks, which save: submitit's controller would kill them after a second.
        ours = signal.signal(signal.SIGINT, signal.SIG_IGN)
        job = executor.submit(work)
        signal.signal(signal.SIGINT, ours)
        note = ending.place(executor.folder, job.job_id, 0)
        _follow(job, note)
        ended = ending.read(note)
        if ended is None:
            tasks = range(job.num_tasks)
            whole = all(job.task(task).paths.result_pickle.exists() for task in tasks)
            return EXIT_GOOD if whole else EXIT_FAILED
        err.print(f"rank {ended.rank}: {ended.message}")
        if ended.signal not in ending.OF_THE_CLUSTER:
            err.print(f"to go on in its folder, give {work.config} with the same options")
            return ended.code


def _follow(job: Job[None], note: Path) -> None:
    """Print rank 0's log until all ranks have ended; signals go to the ranks, and we wait."""
    signal.signal(signal.SIGTERM, lambda number, _: os.kill(int(job.job_id), number))
    log, at, asked = job.paths.stdout, 0, False
    while True:
        ended = job.done()
        try:
            if log.exists():
                with log.open("rb") as file:
                    file.seek(at)
                    out.file.write(file.read().decode(errors="replace"))
                    at = file.tell()
            if ended:
                return
            time.sleep(0.2)
        except KeyboardInterrupt:
            if asked:  # not heard, or no time to save: the ranks end when they see the note
                ending.leave(
                    note, ending.Note(0, "", EXIT_INTERRUPTED, "interrupted", signal.SIGINT)
                )
            err.print("stopping; Ctrl-C again does not wait for the ranks to save")
            asked = True


if __name__ == "__main__":
    # By its name, so that jobs find what is pickled.
    from launch import submit as by_name

    by_name.main()
