"""Set up a network for training: normalization, precision, DDP, compiling, warm-up."""

import os
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from harness import models
from harness.data.batch import Batch, as_nchw
from harness.data.sets import mean_of_training
from harness.data.stream import blank_rows
from harness.models import criterion
from harness.trainer.normalize import Normalize
from harness.trainer.resolve import Resolved

_CODE_OF_DDP = (
    "`set_runtime_stats_and_log` of class `Logger`",
    "of class `Reducer`",
    "`DistributedDataParallel._inside_ddp_forward`",
)
"""As the reasons for a graph break name what lies around the network: C++, and a switch."""
_AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Classifier(nn.Module):
    """uint8 images [n, 3, px, px] to logits [n, classes]: normalize, then the network."""

    def __init__(self, net: nn.Module, normalize: Normalize, *, channels_last: bool) -> None:
        super().__init__()
        self.net, self.normalize = net, normalize
        self.layout = torch.channels_last if channels_last else torch.contiguous_format

    def forward(self, *inputs: Tensor | None) -> Tensor:
        """Logits of a batch; `inputs` says which."""
        pixels = self.normalize(*inputs)
        logits: Tensor = self.net(pixels.contiguous(memory_format=self.layout))
        return logits

    def inputs(self, batch: Batch) -> tuple[Tensor | None, ...]:
        """What to call this with for a training batch; for validation, its images are enough."""
        return self.normalize.inputs(batch)

    def no_sync(self) -> AbstractContextManager[None]:
        """As DDP's, for one rank, which has nothing to sum."""
        return nullcontext()


Trained = Classifier | DistributedDataParallel
"""What training calls: the network, under DDP where `Resolved.under_ddp` says so."""


def set_up_torch(resolved: Resolved) -> None:
    """The process-wide switches: threads, TF32, kernels."""
    engine = resolved.config.engine
    torch.set_num_threads(resolved.threads)
    torch.set_float32_matmul_precision("highest" if resolved.precision == "fp32" else "high")
    torch.backends.cudnn.allow_tf32 = resolved.precision != "fp32"
    torch.backends.cudnn.benchmark = not engine.deterministic
    if resolved.world.on_gpu:
        torch.backends.cudnn.benchmark_limit = engine.cudnn_benchmark_limit
    # In channels_last, of 1x1 convolutions: one layout, written in two ways (pytorch issue 157862).
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if engine.deterministic:
        # cuBLAS reads this when it starts; without it torch refuses its matrix products.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(engine.deterministic)


def network(resolved: Resolved, classes: int) -> nn.Module:
    """The network with its first weights, drawn from the run's seed or given, in host memory.

    Raises:
        BadInput: weights that cannot be had, or do not fit.
    """
    model = resolved.config.model
    torch.manual_seed(resolved.config.run.seed)
    net = models.build(model, classes)
    if model.weights is not None:
        from harness.models.weights import load_weights

        load_weights(net, model.weights, model.name)
    return net


def place(net: nn.Module, resolved: Resolved) -> Classifier:
    """Move the network to its device, normalize its input, and compile it if configured.

    Compiled in place, so that the keys of its state stay clean.
    """
    config = resolved.config
    normalize = Normalize(config.data, mean_of_training(config.data))
    if config.engine.pad_stem:
        from harness.models.pad_stem import pad_stem

        pad_stem(net)
    model = Classifier(net, normalize, channels_last=config.engine.channels_last)
    model.to(resolved.world.device).to(memory_format=model.layout)
    if resolved.compiled:
        _compile(model, resolved)
    return model


def _compile(module: nn.Module, resolved: Resolved) -> None:
    from torch._inductor import config, list_mode_options  # takes seconds, and is needed anyway

    engine = resolved.config.engine
    if "TORCHINDUCTOR_COMPILE_THREADS" not in os.environ:
        # Inductor by itself would start a worker in each rank for every core of the node.
        config.compile_threads = min(32, resolved.world.cores())
    how: dict[str, Any] = {"mode": engine.compile_mode}
    if engine.coordinate_descent:
        # torch takes a mode or options, and tells which options a mode means.
        means = list_mode_options(engine.compile_mode)
        how = {"options": {**means, "coordinate_descent_tuning": True}}
    # Static shapes: training and validation get a graph of their own, never a dynamic one.
    module.compile(dynamic=False, **how)


def data_parallel(model: Classifier, resolved: Resolved) -> Trained:
    """The network under DDP, which averages gradients while the backward pass runs.

    Itself where DDP would have nothing to do: it costs a copy of each gradient, and cuts the graph.
    """
    engine, world = resolved.config.engine, resolved.world
    if not resolved.under_ddp:
        return model
    with warnings.catch_warnings():
        # The newest torch renames broadcast_buffers; the older ones know no other name.
        warnings.simplefilter("ignore", FutureWarning)
        ddp = DistributedDataParallel(
            model,
            device_ids=[world.device] if world.on_gpu else None,
            # BN's running statistics belong to rank 0, which gives them out before evaluations.
            broadcast_buffers=False,
            bucket_cap_mb=engine.bucket_mb,  # type: ignore[arg-type]
            gradient_as_bucket_view=engine.bucket_view,
            static_graph=engine.static_graph,
        )
    if engine.send_gradients == "bf16":
        # Not torch's own by itself, which is refused by its name where NCCL is missing.
        ddp.register_comm_hook(None, lambda group, bucket: bf16_compress_hook(group, bucket))
    if resolved.compiled and engine.compile_ddp:
        # The network's own graph stays for validation, which calls it without DDP.
        _compile(ddp, resolved)
    return ddp


def autocast(resolved: Resolved) -> torch.autocast:
    """Mixed precision for forward passes; nothing for fp32 and tf32."""
    dtype = _AUTOCAST.get(resolved.precision)
    return torch.autocast(resolved.world.device.type, dtype=dtype, enabled=dtype is not None)


def clear_gradients(optimizer: torch.optim.Optimizer, resolved: Resolved) -> None:
    """Before a step's first backward pass.

    CUDA graphs write a gradient to the same place in each replay. If `.grad` was that place, the
    next micro-batch would overwrite what is to be added to: it keeps memory of its own.
    """
    optimizer.zero_grad(set_to_none=not resolved.cuda_graphs)


def warm_up(
    model: Classifier, ddp: Trained, optimizer: torch.optim.Optimizer, resolved: Resolved
) -> None:
    """Throw-away synchronised steps: compile, and fix DDP's bucket order, before the clock starts.

    DDP rebuilds its buckets after the first backward pass (with static_graph, the second), which
    changes the order of sums: without these steps a resumed run would differ in the last bit.
    Weights, BN statistics and random state are afterwards what they were before.
    """
    engine = resolved.config.engine
    if resolved.cuda_graphs:
        for parameter in ddp.parameters():
            parameter.grad = torch.zeros_like(parameter)
    with _state_kept(ddp):
        ddp.train()
        for _ in range(max(2 if engine.static_graph else 1, _first_calls(resolved))):
            _throw_away(model, ddp, resolved)
        if engine.compile_ddp and resolved.split.accumulate > 1:
            # DDP's own code takes another way where it only accumulates.
            with ddp.no_sync():
                _throw_away(model, ddp, resolved)
        clear_gradients(optimizer, resolved)
    warm_up_eval(model, resolved)
    ddp.train()


def _throw_away(model: Classifier, ddp: Trained, resolved: Resolved) -> None:
    n = resolved.split.local_batch
    images = _blank(n, resolved)
    labels = torch.zeros(n, dtype=torch.int64, device=images.device)
    with autocast(resolved):
        logits = ddp(*model.inputs(Batch(images, labels, blank_rows(n))))
    criterion()(logits.float(), labels).backward()


def _first_calls(resolved: Resolved) -> int:
    """Calls that a graph takes until it is as fast as it gets: CUDA graphs run, record, replay."""
    return 3 if resolved.cuda_graphs else 1


def warm_up_eval(model: nn.Module, resolved: Resolved) -> None:
    """Compile the validation graph."""
    # Made outside of inference mode, as the loader's: a tensor made within is of another kind.
    images = _blank(resolved.eval_images * resolved.eval_views, resolved)
    model.eval()
    for _ in range(_first_calls(resolved)):
        with torch.inference_mode(), autocast(resolved):
            model(images)
    if resolved.world.on_gpu:
        # What cuDNN tried its algorithms with: neither kept from DALI, nor counted as training's.
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(resolved.world.device)


def _blank(n: int, resolved: Resolved) -> Tensor:
    px, device = resolved.config.data.image_px, resolved.world.device
    return as_nchw(torch.zeros((n, px, px, 3), dtype=torch.uint8, device=device))


def seed_dropout(resolved: Resolved, micro_step: int) -> None:
    """Let the masks follow from seed, rank and micro-step alone: a run that goes on draws them too.

    Nothing else draws from torch's generator while training. No micro-step is seeded without
    dropout.
    """
    if resolved.config.model.dropout:
        key = resolved.config.run.seed, resolved.world.rank, micro_step
        torch.manual_seed(int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0]))


def graph_counts() -> dict[str, int]:
    """How many graphs torch.compile has made so far, and how often it broke the network's.

    With engine.compile_ddp it always breaks in DDP's own code too, before and after the network.
    """
    from torch._dynamo.utils import counters

    breaks = counters["graph_break"].items()
    return {
        "graphs": int(counters["stats"]["unique_graphs"]),
        "breaks": sum(n for why, n in breaks if not any(name in why for name in _CODE_OF_DDP)),
    }


@contextmanager
def _state_kept(model: nn.Module) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices):
        yield
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)
