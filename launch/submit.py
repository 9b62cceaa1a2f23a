"""Submit a training to Slurm: one task per GPU, without torchrun, requeued until it has finished.

python launch/submit.py configs/resnet50_90ep.yaml --nodes 4 --gpus-per-node 8 --partition gpu \\
    --time 8h --data.train /imagenet/train --data.val /imagenet/val
"""

import argparse
import io
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

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
    one_line,
)
from harness.run_folder import folder as run_folder
from harness.system.console import count, duration, err, out
from harness.system.process import caught, outlive_streams
from launch import ending, options, slurm, sweep, worker
from launch.sweep import Plan

ROOT = Path(__file__).resolve().parent.parent


@dataclass
class Work(Checkpointable):  # type: ignore[misc]
    """Run one task of a job, with the rank that Slurm or the local executor gave it.

    Submitit's own preemption handler, which requeues because this class is Checkpointable, only
    covers the time before the call. After that the harness's handler saves at the same step on all
    ranks, and launch/ending.py requeues once all ranks have ended: a signal could kill a rank that
    is still running.
    """

    config: Path
    on_gpu: bool
    nohup: bool = False  # whether the local executor was started so that SIGHUP is ignored

    def __call__(self) -> None:
        """Train to the end; on an error the process exits and this does not return."""
        job = JobEnvironment()
        local = job.cluster == "local"  # perhaps within a job of Slurm, which may be requeued
        start = 0 if local else int(os.environ.get("SLURM_RESTART_COUNT") or 0)
        note = ending.note_path(job.paths.folder, job.job_id, start)
        # Each job and each of its starts gets another port, below those of outgoing connections.
        port = slurm.port({**os.environ, "SLURM_JOB_ID": job.raw_job_id})
        os.environ["MASTER_PORT"] = str(port)
        # All GPUs stay visible, as NCCL needs it; World picks the one of this rank. Overwrite, as
        # Slurm passes on the environment of the submitting shell, which may be in another job.
        TorchDistributedEnvironment().export(set_cuda_visible_devices=False, overwrite=True)
        if job.num_nodes == 1:
            os.environ["MASTER_ADDR"] = "127.0.0.1"  # its name need not resolve on the node itself
        if local and not self.nohup:  # the controller ignores it in any case
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
        worker.work(self.config, note, on_gpu=self.on_gpu, local=local)


class Slurm(SlurmExecutor):  # type: ignore[misc]
    """Submitit's executor, which can be had without Slurm too, for --dry-run."""

    @classmethod
    def affinity(cls) -> int:
        """Return that this executor is available; _queue checks for sbatch itself."""
        return 2


def submit(argv: Sequence[str]) -> int:
    """Submit, print (--dry-run) or run (--local) a command line's runs; return the exit code.

    Raises:
        BadInput: something is wrong; nothing has been queued, and no file is left behind.
    """
    args, settings = options.parse(argv)
    plan = sweep.plan(settings, args.sweep, args.seeds, time.strftime("%Y%m%d-%H%M%S"))
    for config in plan.runs:
        if config.run.mode == "train":
            per_rank(config.train.global_batch, args.nodes * args.ranks_per_node)
        if config.run.dry_run:
            raise BadInput("run.dry_run: --dry-run shows the plan and submits nothing")
        # Raises if the folder holds another run.
        run_folder.is_finished(Path(config.run.root, str(config.run.name)), config, {})
    if args.local and args.nodes > 1:
        raise BadInput("--local: runs on this machine only; leave out --nodes")
    executor = _executor(plan, args)
    if args.dry_run:
        jobs = ["JOB"]
        if len(plan.runs) > 1:
            jobs = [f"JOB_{index}" for index in range(len(plan.runs))]
            executor.parameters["map_count"] = len(jobs)
        out.print(executor._make_submission_file_text(executor._submitit_command_str, ""))
        _print_jobs(plan, args, jobs)
        return EXIT_GOOD
    if args.local:
        return _run_local(plan, args)
    return _queue(plan, args, executor)


def _executor(plan: Plan, args: argparse.Namespace) -> Slurm:
    end = shlex.join([
        sys.executable, str(ROOT / "launch" / "ending.py"), str(plan.folder.absolute()),
        f"--max-restarts={args.max_restarts}", f"--max-requeues={args.max_requeues}",
    ])  # fmt: skip
    cores = [f"--cpus-per-task={args.cpus_per_task}"] if args.cpus_per_task else []
    executor = Slurm(plan.folder)  # writes nothing to disk
    executor.update_parameters(
        job_name=plan.stem,
        array_parallelism=args.parallel,
        stderr_to_stdout=True,
        wckey=None,  # submitit's default is its own name, which a site may refuse
        setup=[
            # Variables, limits and the site's file are those of the scripts in slurm/. A failing
            # command must not end this script: the teardown has to run.
            f"source {shlex.quote(str(ROOT / 'slurm' / 'common.sh'))}",
            "set +eu; trap - USR1 TERM",
            "set_variables",
            "check_limits",
            "unset SLURM_CPUS_PER_TASK SRUN_CPUS_PER_TASK",  # another job's, if submitted from it
        ],
        # One failing rank ends all. A rank may use all cores that the job has on its node, as under
        # torchrun: the harness divides them among the ranks itself, on each node those that it has.
        srun_args=["--kill-on-bad-exit=1", "--cpu-bind=none", "--open-mode=append", *cores],
        teardown=["code=$?", f"exec {end} --code=$code"],
        **options.parameters(args),
    )
    return executor


def _queue(plan: Plan, args: argparse.Namespace, executor: Slurm) -> int:
    """Queue one job, or one job array; remove all files again if Slurm refuses it."""
    if shutil.which("sbatch") is None:
        advice = "submit on a login node, or run on this machine with --local"
        raise BadInput(f"sbatch: not found; {advice}")
    with _config_files(plan, args) as works:
        try:
            with redirect_stderr(io.StringIO()):  # submitit prints there what it also raises
                jobs = executor.submit_array(works)
        except (FailedJobError, FailedSubmissionError) as error:
            lines = str(error).replace("sbatch: error: ", "").splitlines()
            raise BadInput(f"sbatch: {'; '.join(lines)}") from None
    _print_jobs(plan, args, [job.job_id for job in jobs])
    return EXIT_GOOD


@contextmanager
def _config_files(plan: Plan, args: argparse.Namespace) -> Iterator[list[Work]]:
    """Write the checked configs, so that editing the YAML while the job waits changes nothing.

    Removes the folder again if the block raises.
    """
    try:
        plan.folder.mkdir(parents=True)
    except OSError as error:
        why = f"{error.strerror}; set --run.root to a folder you can write"
        if isinstance(error, FileExistsError):
            why = "already submitted in this second; submit it again"
        raise BadInput(f"{plan.folder}: {why}") from None
    try:
        for config, file in zip(plan.runs, plan.config_files, strict=True):
            file.write_text(load.dump(config), encoding="utf-8")
        nohup = args.local and signal.SIGHUP not in caught()
        yield [Work(file, args.gpus_per_node > 0, nohup) for file in plan.config_files]
    except BaseException:
        shutil.rmtree(plan.folder)
        raise


def _print_jobs(plan: Plan, args: argparse.Namespace, jobs: list[str]) -> None:
    """Print what was queued, its folders and logs, and what to type next."""
    job = jobs[0].split("_")[0]
    ranks = count(args.ranks_per_node, "GPU" if args.gpus_per_node else "CPU rank")
    size = f"{count(len(jobs), 'run')} on {count(args.nodes, 'node')} x {ranks}"
    rows = [("job", f"{job}: {size}, up to {duration(60 * args.time)} at a time")]
    for name, config in zip(jobs, plan.runs, strict=True):
        folder = Path(config.run.root, str(config.run.name))
        log = JobPaths(plan.folder, name, 0).stdout
        rows += [("run", str(folder)), ("log", str(log))]
    rows += [
        ("ranks' logs", f"{plan.folder}/{jobs[0]}_RANK_log.out"),
        ("config", f"{plan.config_files[0]}, as it will run"),
        ("follow", f"squeue --job {job}; tail -F {log}; harness show {folder}"),
        ("end", f"scancel {job}"),
    ]
    out.print("\n".join(f"{name:>12}: {value}" for name, value in rows))


def _run_local(plan: Plan, args: argparse.Namespace) -> int:
    """Run the runs in turn by submitit's local executor; return the first nonzero exit code."""
    paths = filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    with _config_files(plan, args) as works:
        executor = LocalExecutor(plan.folder)
    executor.update_parameters(
        gpus_per_node=args.gpus_per_node, tasks_per_node=args.ranks_per_node,
        timeout_min=args.time, signal_delay_s=args.signal_delay_s, stderr_to_stdout=True,
    )  # fmt: skip
    codes = [EXIT_GOOD]
    for work in works:
        if (code := _run_one(executor, work)) > 128:  # a signal that ends this command
            return code
        codes.append(code)
    return next(filter(None, codes), EXIT_GOOD)


def _run_one(executor: LocalExecutor, work: Work) -> int:
    """Run once, restarting near the time limit as Slurm would; return the exit code."""
    while True:
        # What a terminal sends must reach only the ranks, which then save: submitit's controller
        # would kill them after a second, or die, so it is started with these signals ignored.
        of_terminal = (signal.SIGINT, signal.SIGHUP)
        handlers = [signal.signal(number, signal.SIG_IGN) for number in of_terminal]
        job = executor.submit(work)
        for number, handler in zip(of_terminal, handlers, strict=True):
            signal.signal(number, handler)
        note = ending.note_path(executor.folder, job.job_id, 0)
        _follow(job, note)
        ended = ending.read_note(note)
        if ended is None:
            results = [job.task(rank).paths.result_pickle for rank in range(job.num_tasks)]
            return EXIT_GOOD if all(map(Path.exists, results)) else EXIT_FAILED
        err.print(f"rank {ended.rank}: {ended.message}")
        if ended.signal not in ending.OF_THE_CLUSTER:
            err.print(f"to continue in its run folder, submit {work.config} with the same options")
            return ended.code


def _follow(job: Job[None], note: Path) -> None:
    """Print rank 0's log until all ranks have ended; pass signals on to the ranks."""

    def pass_on(number: int, _: FrameType | None) -> None:
        controller = Path("/proc", job.job_id, "task", job.job_id)
        with suppress(OSError):  # they have ended
            for rank in (controller / "children").read_text().split() or [job.job_id]:
                os.kill(int(rank), number)

    for number in {signal.SIGTERM, signal.SIGHUP}.intersection(caught()):
        signal.signal(number, pass_on)
    job.paths.stdout.touch()  # submitit appends to it
    interrupted = False
    with job.paths.stdout.open(errors="replace", newline="") as log:
        while True:
            try:
                ended = job.done()
                out.file.write(log.read())
                if ended:
                    return
                time.sleep(0.2)
            except KeyboardInterrupt:
                if interrupted:  # the second Ctrl-C: ranks end without saving, seeing the note
                    by_hand = ending.Note(0, "", EXIT_INTERRUPTED, "interrupted", signal.SIGINT)
                    ending.write_note(note, by_hand)
                err.print("stopping once the ranks have saved; "
                          "press Ctrl-C again to end them without saving")  # fmt: skip
                interrupted = True


if __name__ == "__main__":
    # Import by name, so that jobs can unpickle Work: pickled from here it would be __main__.Work.
    from launch import submit as by_name

    outlive_streams()
    try:
        sys.exit(by_name.submit(sys.argv[1:]))
    except HarnessError as error:
        err.print(f"error: {one_line(error)}")
        sys.exit(error.exit_code)
