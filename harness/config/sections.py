"""The sections: each setting with its unit, limits and meaning, and what it may change."""

from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from harness.models import zoo

Changes = Literal["result", "speed", "result and speed", "nothing"]
"""What another value of a setting may change: this decides which fingerprints hold it."""


def setting(default: Any, *, changes: Changes, added: bool = False, **limits: Any) -> Any:
    """Declare a setting of a section: its default and what it may change; its meaning is below it.

    One that was `added` later is in no fingerprint while it has its default, which must be how runs
    were made before: so these can be continued and compared.
    """
    extra: dict[str, Any] = {"changes": changes, "added": added}
    return Field(default, json_schema_extra=extra, **limits)


def _as_list(value: Any) -> Any:
    """Split `30`, `30,60,80` or `[30, 60, 80]`, as flags and YAML write a list."""
    if not isinstance(value, str) or not value.strip():
        return value
    inner = value.strip().removeprefix("[").removesuffix("]")
    return [part.strip() for part in inner.split(",")] if inner.strip() else []


result = partial(setting, changes="result")
speed = partial(setting, changes="speed")
both = partial(setting, changes="result and speed")
neither = partial(setting, changes="nothing")

Floats = Annotated[tuple[float, ...], BeforeValidator(_as_list)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_as_list)]
Pair = Annotated[tuple[float, float], BeforeValidator(_as_list)]
Lengths = Annotated[tuple[int, int], BeforeValidator(_as_list)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(_as_list)]
Texts = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Auto = Literal["auto"]
if TYPE_CHECKING:
    ModelName = str
else:
    ModelName = Literal[tuple(zoo.MODELS)]


class Section(BaseModel):
    """A group of settings for one concern."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        validate_default=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class Run(Section):
    """The run and its folder."""

    name: str | None = neither(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the run and of its folder; by default CONFIG-sSEED."""
    root: str = neither("runs", min_length=1)
    """Folder that holds the run folders."""
    mode: Literal["train", "eval"] = result("train")
    """train, or eval: only score model.weights on data.val."""
    seed: int = result(0, ge=0, lt=2**63)
    """Seed of weights, data order and crops."""
    dry_run: bool = neither(False)
    """Print what would be run, then stop."""
    references: Texts = neither(())
    """Published rows that the result is held against; see harness show references."""
    restart: bool = neither(False)
    """Start over: move an old run folder of this name aside."""


class Model(Section):
    """The network (He et al. 2015; Huang et al. 2017)."""

    name: ModelName = both("resnet50", description=zoo.MEANING)
    stem: Literal["auto", "imagenet", "cifar"] = both("auto")
    """imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no pool; auto: by the network."""
    shortcut: Literal["auto", "A", "B", "C"] = both("auto")
    """Where the shape changes: A pads with zeros, B projects; C projects in every block. auto: B,
    and A for the 6n+2 networks."""
    stride_in: Literal["3x3", "1x1"] = both("3x3")
    """Which convolution of a bottleneck strides: 3x3 (v1.5) or 1x1 (the paper's)."""
    zero_gamma: bool = result(False)
    """Start the last BN of each block at gamma 0 (Goyal et al. 2017, 5.1)."""
    fc_init_std: float | None = result(None, gt=0)
    """Standard deviation of the classifier's normal initialization (Goyal et al.: 0.01); by default
    torch's uniform one."""
    bn_images: int | None = both(None, ge=1)
    """Images over which BN takes its statistics (Goyal et al.: 32), of which the local batch must
    be a multiple; by default the local batch."""
    dropout: float = both(0.0, ge=0, lt=1)
    """DenseNet: share of values dropped after each convolution but the first (Huang et al. 2017:
    0.2 on CIFAR without augmentation)."""
    memory_saving: bool = speed(False)
    """DenseNet: compute concatenations and their BN again in the backward pass, which saves most of
    the memory (Pleiss et al. 2017)."""
    weights: str | None = result(None, min_length=1)
    """Weights to start from or to score: torchvision:IMAGENET1K_V1, or a file."""


class Data(Section):
    """The images and how they are read, decoded and augmented."""

    # An unset shell variable must not mean the current folder.
    train: str | None = neither(None, min_length=1)
    """Training images: a folder with one folder per class, or of tar shards; `demo` draws a small
    set by itself."""
    val: str | None = neither(None, min_length=1)
    """Validation images: likewise; or `demo`."""
    source: Literal["dali", "torchvision", "synthetic"] = both("dali")
    """dali; torchvision: Pillow in DataLoader workers (the baseline); synthetic: no reading."""
    decode: Literal["auto", "cpu", "split", "gpu"] = both("auto")
    """Where DALI decodes, resizes and flips; split: decodes on the CPU, resizes and flips on the
    GPU; auto: the CPU if it is fast enough for the training, else what is fastest."""
    read: Literal["mmap", "pread"] = speed("mmap")
    """Map files, or read them into memory (network file systems)."""
    read_ahead_batches: int = speed(4, ge=0, le=64)
    """Batches whose bytes are read ahead of those that DALI decodes; 0: none."""
    hw_decoder_load: float = speed(0.65, ge=0, le=1)
    """decode gpu: share of the images for the hardware JPEG decoder, where the GPU has one; CUDA
    decodes the others."""
    largest_px: Lengths = speed((5980, 6430))
    """decode gpu: width and height of the largest image to set memory aside for, so that it does
    not grow during a run (ImageNet's); 0 0: none."""
    image_px: int = both(224, ge=8)
    """Side of the square images given to the network, px."""
    augment: Literal["resized_crop", "scale_jitter", "pad_crop", "none"] = both("resized_crop")
    """resized_crop: random area and ratio (ImageNet); scale_jitter: shorter side to a random
    length, random crop (He et al. 2015); pad_crop: zero pad, random crop (CIFAR)."""
    crop_area: Pair = result((0.08, 1.0))
    """resized_crop: least and most share of the image's area."""
    crop_ratio: Pair = result((3 / 4, 4 / 3))
    """resized_crop: least and most width / height."""
    jitter_px: Lengths = both((256, 480))
    """scale_jitter: least and most length of the shorter side, px."""
    pad_px: int = result(4, ge=0, le=256)
    """pad_crop: zeros around the image, px."""
    flip: bool = result(True)
    """Mirror half of the training images."""
    colour_std: float = both(0.0, ge=0)
    """PCA color augmentation of ImageNet's colors (Krizhevsky et al. 2012: 0.1); 0: none."""
    holdout_images: int = result(0, ge=0)
    """Validate on so many images held out of data.train, the same in every run, in place of
    data.val; 0: none."""
    eval_resize_px: int = both(256, ge=0)
    """Validation: shorter side before the center crop, px; 0 leaves the image as it is."""
    mean: Triple = result((0.485, 0.456, 0.406))
    """Mean of R, G, B, for pixels in [0, 1]."""
    std: Triple = result((0.229, 0.224, 0.225))
    """Standard deviation of R, G, B in [0, 1]."""
    mean_image: bool = both(False)
    """Subtract the mean training image, pixel by pixel, before the crop, in place of data.mean (He
    et al. 2015, 4.2: CIFAR); needs images of one size, data.image_px."""
    threads: int = speed(0, ge=0)
    """Loader threads (DALI) or workers (torchvision) per rank; 0: the rank's cores."""
    prefetch_batches: int = speed(2, ge=1, le=64)
    """Batches made ahead, per rank."""
    synthetic_images: int = result(1_281_167, ge=1)
    """synthetic: images per epoch."""
    synthetic_val_images: int = result(1000, ge=1)
    """synthetic: validation images."""
    synthetic_classes: int = result(1000, ge=2)
    """synthetic: classes."""


class Train(Section):
    """Batches and loss."""

    global_batch: int = both(256, ge=1)
    """Images per optimizer step, over all ranks and accumulation."""
    max_local_batch: int | None = both(None, ge=1)
    """Most images per rank in one forward; gradients accumulate to reach the global batch."""
    label_smoothing: float = result(0.0, ge=0, lt=1)
    """Share of the target spread over all classes."""


class Optim(Section):
    """The optimizer."""

    name: Literal["sgd"] = both("sgd", added=True)
    """Which optimizer (optim.py)."""
    lr_per_256: float = result(0.1, gt=0)
    """Learning rate per 256 images of global batch; the peak is this x global_batch / 256 (Goyal et
    al. 2017, 2.1)."""
    momentum: float = result(0.9, ge=0, lt=1)
    """Momentum."""
    nesterov: bool = result(False)
    """Nesterov's momentum."""
    weight_decay: float = result(1e-4, ge=0)
    """Weight decay (L2)."""
    decay_norm_and_bias: bool = result(True)
    """Decay parameters of one dimension too (BN, biases)."""


class Schedule(Section):
    """The learning rate over the steps, and the end."""

    epochs: int = result(90, ge=1)
    """Length, epochs."""
    decay: Literal["step", "cosine", "constant", "plateau"] = result("step")
    """How the learning rate falls after the warm-up; plateau: when validation stops improving."""
    drop_epochs: Floats = result((30.0, 60.0, 80.0))
    """step: epochs at which the rate drops."""
    drop_steps: Integers = result(())
    """step: optimizer steps at which it drops, in place of drop_epochs."""
    drop_factor: float = result(0.1, gt=0, le=1)
    """step, plateau: what a drop multiplies the rate with."""
    plateau_epochs: int = result(5, ge=1)
    """plateau: drop after this many epochs without a better top-1; then the count restarts."""
    plateau_gain_pct: float = result(0.1, ge=0)
    """plateau: how much higher than the best so far a top-1 must be to count as better, points."""
    warmup_epochs: float = result(0.0, ge=0)
    """Length of the warm-up, epochs."""
    warmup: Literal["gradual", "constant"] = result("gradual")
    """gradual: one increment per step up to the peak; constant: warmup_start_lr throughout (Goyal
    et al. 2017, 2.2)."""
    warmup_start_lr: float | None = result(None, ge=0)
    """Rate at step 0 of the warm-up; by default lr_per_256, at most the peak."""
    warmup_until_top1_pct: float | None = result(None, gt=0, lt=100)
    """Keep warmup_start_lr until the training top-1 over a log period is higher (He et al. 2015,
    4.2, ResNet-110: 20)."""
    max_steps: int | None = result(None, ge=1)
    """Stop after this many optimizer steps."""
    max_minutes: float | None = result(None, gt=0)
    """Stop when training has taken so many minutes, validation and start-up left out."""
    stop_at_top1_pct: float | None = result(None, gt=0, le=100)
    """Stop after the first validation with at least this top-1 (MLPerf: 75.9)."""


class Eval(Section):
    """Validation: every image counts exactly once, at any world size."""

    every_epochs: int = neither(1, ge=1)
    """Validate after every so many epochs, and after the last."""
    local_batch: int = both(256, ge=1)
    """Images per rank in one forward."""
    views: Literal["centre", "ten_crop"] = both("centre")
    """centre: one crop; ten_crop: corners and center, mirrored too, mean of the probabilities."""


class Engine(Section):
    """How the computing is done."""

    device: Literal["auto", "cpu", "cuda"] = both("auto")
    """auto: the GPU if there is one."""
    backend: Literal["auto", "nccl", "gloo"] = both("auto", added=True)
    """What joins the ranks; auto: nccl on GPUs, gloo on CPUs; gloo also lets several ranks share a
    GPU, through host memory: to try things out, not for speed."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = both("auto")
    """auto: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU."""
    channels_last: bool = both(True)
    """Keep tensors in NHWC order."""
    compile: bool | Auto = both("auto")
    """torch.compile the network; auto: on a GPU."""
    compile_mode: Literal[
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = both("default")
    """torch.compile's mode; reduce-overhead: with CUDA graphs; max-autotune: also with kernels
    chosen by trying them, which takes long."""
    compile_ddp: bool = both(False)
    """Compile DDP's own code around the network too, in which torch breaks the graph (not counted
    as graph breaks); the network's graph is cut at bucket borders either way."""
    coordinate_descent: bool = both(False, added=True)
    """torch.compile: tune the kernels that it writes for a GPU by trying, step by step; both
    max-autotune modes do so by themselves."""
    cudnn_benchmark_limit: int = both(10, added=True, ge=0)
    """cuDNN: so many algorithms are tried for each convolution on a GPU; 0: all."""
    pad_stem: bool = both(False, added=True)
    """Give the first convolution a fourth channel of zeros, in its images and weights: the same
    result by other kernels; checkpoints keep three."""
    bucket_mb: float = both(25.0, gt=0)
    """DDP: size of a gradient bucket, MiB."""
    static_graph: bool = both(False)
    """DDP: promise that the graph never changes."""
    bucket_view: bool = speed(True)
    """DDP: gradients lie in the buckets; false: they are copied in and out."""
    send_gradients: Literal["fp32", "bf16"] = both("fp32")
    """DDP: bf16 rounds gradients and sums them in bf16: half the bytes."""
    fused_optimizer: bool | Auto = both("auto")
    """SGD in one kernel; auto: true; false: with fp16, the host then waits in each step."""
    threads: int = both(0, ge=0)
    """CPU threads for computing, per rank; 0: the rank's cores."""
    deterministic: bool = both(False)
    """Only deterministic kernels: slower, equal bits on a GPU."""
    timeout_s: float = neither(300.0, gt=0)
    """A rank that is waited for longer ends the run, with a stack of each rank, s."""
    warm_up_timeout_s: float = neither(3600.0, gt=0)
    """The same while starting and compiling, s."""


class Checkpoint(Section):
    """When the run is saved, besides at the end of each epoch, and what is kept."""

    every_steps: int = neither(0, ge=0)
    """Save every so many steps; 0: not by steps."""
    every_minutes: float = neither(5.0, ge=0)
    """Save when so much time has passed, minutes; 0: not by time."""
    keep: int = neither(2, ge=1)
    """How many of the newest to keep."""
    keep_every_epochs: int = neither(0, ge=0)
    """Keep also one of every so many epochs; 0: none."""


class Profile(Section):
    """Some steps under torch's profiler."""

    steps: str | None = speed(None, pattern=r"^\d+:\d+$")
    """Profile rank 0 from step FIRST up to LAST, as 20:30, counted from 0: a trace and the
    costliest kernels of each phase, in the run folder; by default none."""

    @property
    def first_and_last(self) -> tuple[int, int] | None:
        """As numbers."""
        if self.steps is None:
            return None
        first, last = self.steps.split(":")
        return int(first), int(last)


class Log(Section):
    """What is written while training, and where it is mirrored."""

    every_steps: int = neither(50, ge=1)
    """Steps per row."""
    wandb: Literal["auto", "online", "offline", "off"] = neither("auto")
    """Mirror to Weights & Biases; auto: as W&B's WANDB_MODE says, else online if there is a key."""
    project: str = neither("imagenet-harness", pattern=r"^[^/\\#?%:]{1,128}$")
    """W&B project."""
    entity: str | None = neither(None)
    """W&B entity (user or team)."""
    tags: Texts = neither(())
    """W&B tags, besides the automatic ones."""
