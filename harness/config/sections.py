"""The sections: each setting with its unit, limits and meaning, and what it may change."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from harness.config.names import ModelName

Changes = Literal["result", "speed", "result and speed", "nothing"]
"""What another value of a setting may change: this decides which fingerprints hold it."""


def setting(
    default: Any, meaning: str, *, changes: Changes, added: bool = False, **limits: Any
) -> Any:
    """One setting of a section: its default, its meaning with unit, and what it may change.

    One that was `added` after runs had been made without it, which did as its default does, is in
    no fingerprint with its default: so those runs go on, and compare.
    """
    extra: dict[str, Any] = {"changes": changes, "added": added}
    return Field(default, description=meaning, json_schema_extra=extra, **limits)


def _as_list(value: Any) -> Any:
    """Let `30`, `30,60,80` and `[30, 60, 80]` stand where a list is meant, as flags write them."""
    if not isinstance(value, str) or not value.strip():
        return value
    inner = value.strip().removeprefix("[").removesuffix("]")
    return [part.strip() for part in inner.split(",")] if inner.strip() else []


Floats = Annotated[tuple[float, ...], BeforeValidator(_as_list)]
Integers = Annotated[tuple[int, ...], BeforeValidator(_as_list)]
Pair = Annotated[tuple[float, float], BeforeValidator(_as_list)]
Lengths = Annotated[tuple[int, int], BeforeValidator(_as_list)]
Triple = Annotated[tuple[float, float, float], BeforeValidator(_as_list)]
Words = Annotated[tuple[str, ...], BeforeValidator(_as_list)]
Auto = Literal["auto"]


class Section(BaseModel):
    """A group of settings for one concern."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False
    )


class Run(Section):
    """The run and its folder."""

    name: str | None = setting(
        None,
        "Name of the run and of its folder; by default CONFIG-sSEED, with the job id under Slurm.",
        changes="nothing",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    root: str = setting(
        "runs", "Folder that holds the run folders.", changes="nothing", min_length=1
    )
    mode: Literal["train", "eval"] = setting(
        "train", "train, or eval: only score model.weights on data.val.", changes="result"
    )
    seed: int = setting(
        0, "Seed of weights, data order and crops.", changes="result", ge=0, lt=2**63
    )
    dry_run: bool = setting(False, "Print what would be run, then stop.", changes="nothing")
    references: Words = setting(
        (), "Published rows that the result is held against; see harness show references.",
        changes="nothing"
    )  # fmt: skip
    restart: bool = setting(
        False, "Start over: move an old run folder of this name aside.", changes="nothing"
    )


class Model(Section):
    """The network (He et al. 2015; Huang et al. 2017)."""

    name: ModelName = setting(
        "resnet50",
        "resnet18 to 152, plain18 and 34 (no shortcuts), densenet121 to 264: the ImageNet "
        "networks; resnet20 to 1202, plain20 to 56: 6n+2 layers for CIFAR; densenet_40_12: for "
        "CIFAR, 40 layers, growth rate 12; bc: with bottlenecks and compression.",
        changes="result and speed",
    )
    stem: Literal["auto", "imagenet", "cifar"] = setting(
        "auto",
        "imagenet: 7x7 stride 2 and max-pool; cifar: 3x3 stride 1, no pool; auto: by the network.",
        changes="result and speed",
    )
    shortcut: Literal["auto", "A", "B", "C"] = setting(
        "auto",
        "Where the shape changes: A pads with zeros, B projects; C projects in every block. "
        "auto: B, and A for the 6n+2 networks.",
        changes="result and speed",
    )
    stride_in: Literal["3x3", "1x1"] = setting(
        "3x3",
        "Which convolution of a bottleneck strides: 3x3 (v1.5) or 1x1 (the paper's).",
        changes="result and speed",
    )
    zero_gamma: bool = setting(
        False,
        "Start the last BN of each block at gamma 0 (Goyal et al. 2017, 5.1).",
        changes="result",
    )
    fc_init_std: float | None = setting(
        None,
        "Standard deviation of the classifier's normal initialization (Goyal et al.: 0.01); "
        "by default torch's uniform one.",
        changes="result",
        gt=0,
    )
    bn_images: int | None = setting(
        None,
        "Images over which BN takes its statistics (Goyal et al.: 32), of which the local batch "
        "must be a multiple; by default the local batch.",
        changes="result and speed",
        ge=1,
    )
    dropout: float = setting(
        0.0,
        "DenseNet: share of values dropped after each convolution but the first (Huang et al. "
        "2017: 0.2 on CIFAR without augmentation).",
        changes="result and speed",
        ge=0,
        lt=1,
    )
    memory_saving: bool = setting(
        False,
        "DenseNet: compute concatenations and their BN again in the backward pass, which saves "
        "most of the memory (Pleiss et al. 2017).",
        changes="speed",
    )
    weights: str | None = setting(
        None,
        "Weights to start from or to score: torchvision:IMAGENET1K_V1, or a file.",
        changes="result",
        min_length=1,
    )


class Data(Section):
    """The images and how they are read, decoded and augmented."""

    train: str | None = setting(
        None,
        "Training images: a folder with one folder per class, or of tar shards; `demo` draws a "
        "small set by itself.",
        changes="nothing",
        min_length=1,  # an unset shell variable must not mean the current folder
    )
    val: str | None = setting(
        None, "Validation images: likewise; or `demo`.", changes="nothing", min_length=1
    )
    source: Literal["dali", "torchvision", "synthetic"] = setting(
        "dali",
        "dali; torchvision: Pillow in DataLoader workers (the baseline); synthetic: no reading.",
        changes="result and speed",
    )
    decode: Literal["auto", "cpu", "split", "gpu"] = setting(
        "auto",
        "Where DALI decodes, resizes and flips; split: decodes on the CPU, resizes and flips on "
        "the GPU; auto: the CPU if it is fast enough for the training, else what is fastest.",
        changes="result and speed",
    )
    read: Literal["mmap", "pread"] = setting(
        "mmap", "Map files, or read them into memory (network file systems).", changes="speed"
    )
    read_ahead_batches: int = setting(
        4,
        "Batches whose bytes are read ahead of those that DALI decodes; 0: none.",
        changes="speed", ge=0, le=64
    )  # fmt: skip
    hw_decoder_load: float = setting(
        0.65,
        "decode gpu: share of the images for the hardware JPEG decoder, where the GPU has one; "
        "CUDA decodes the others.",
        changes="speed", ge=0, le=1
    )  # fmt: skip
    largest_px: Lengths = setting(
        (5980, 6430),
        "decode gpu: width and height of the largest image to set memory aside for, so that it "
        "does not grow during a run (ImageNet's); 0 0: none.",
        changes="speed"
    )  # fmt: skip
    image_px: int = setting(
        224, "Side of the square images given to the network, px.", changes="result and speed", ge=8
    )
    augment: Literal["resized_crop", "scale_jitter", "pad_crop", "none"] = setting(
        "resized_crop",
        "resized_crop: random area and ratio (ImageNet); scale_jitter: shorter side to a random "
        "length, random crop (He et al. 2015); pad_crop: zero pad, random crop (CIFAR).",
        changes="result and speed",
    )
    crop_area: Pair = setting(
        (0.08, 1.0), "resized_crop: least and most share of the image's area.", changes="result"
    )
    crop_ratio: Pair = setting(
        (3 / 4, 4 / 3), "resized_crop: least and most width / height.", changes="result"
    )
    jitter_px: Lengths = setting(
        (256, 480), "scale_jitter: least and most length of the shorter side, px.",
        changes="result and speed"
    )  # fmt: skip
    pad_px: int = setting(
        4, "pad_crop: zeros around the image, px.", changes="result", ge=0, le=256
    )
    flip: bool = setting(True, "Mirror half of the training images.", changes="result")
    colour_std: float = setting(
        0.0,
        "PCA color augmentation of ImageNet's colors (Krizhevsky et al. 2012: 0.1); 0: none.",
        changes="result and speed",
        ge=0,
    )
    holdout_images: int = setting(
        0,
        "Validate on so many images held out of data.train, the same in every run, in place of "
        "data.val; 0: none.",
        changes="result",
        ge=0,
    )
    eval_resize_px: int = setting(
        256,
        "Validation: shorter side before the center crop, px; 0 leaves the image as it is.",
        changes="result and speed",
        ge=0,
    )
    mean: Triple = setting(
        (0.485, 0.456, 0.406), "Mean of R, G, B, for pixels in [0, 1].", changes="result"
    )
    std: Triple = setting(
        (0.229, 0.224, 0.225), "Standard deviation of R, G, B in [0, 1].", changes="result"
    )
    mean_image: bool = setting(
        False,
        "Subtract the mean training image, pixel by pixel, before the crop, in place of data.mean "
        "(He et al. 2015, 4.2: CIFAR); needs images of one size, data.image_px.",
        changes="result and speed",
    )
    threads: int = setting(
        0, "Loader threads (DALI) or workers (torchvision) per rank; 0: the rank's cores.",
        changes="speed", ge=0
    )  # fmt: skip
    prefetch_batches: int = setting(
        2, "Batches made ahead, per rank.", changes="speed", ge=1, le=64
    )
    synthetic_images: int = setting(
        1_281_167, "synthetic: images per epoch.", changes="result", ge=1
    )
    synthetic_val_images: int = setting(
        1000, "synthetic: validation images.", changes="result", ge=1
    )
    synthetic_classes: int = setting(1000, "synthetic: classes.", changes="result", ge=2)


class Train(Section):
    """Batches and loss."""

    global_batch: int = setting(
        256,
        "Images per optimizer step, over all ranks and accumulation.",
        changes="result and speed",
        ge=1,
    )
    max_local_batch: int | None = setting(
        None,
        "Most images per rank in one forward; gradients accumulate to reach the global batch.",
        changes="result and speed",
        ge=1,
    )
    label_smoothing: float = setting(
        0.0, "Share of the target spread over all classes.", changes="result", ge=0, lt=1
    )


class Optim(Section):
    """SGD."""

    lr_per_256: float = setting(
        0.1,
        "Learning rate per 256 images of global batch; the peak is this x global_batch / 256 "
        "(Goyal et al. 2017, 2.1).",
        changes="result",
        gt=0,
    )
    momentum: float = setting(0.9, "Momentum.", changes="result", ge=0, lt=1)
    nesterov: bool = setting(False, "Nesterov's momentum.", changes="result")
    weight_decay: float = setting(1e-4, "Weight decay (L2).", changes="result", ge=0)
    decay_norm_and_bias: bool = setting(
        True, "Decay parameters of one dimension too (BN, biases).", changes="result"
    )


class Schedule(Section):
    """The learning rate over the steps, and the end."""

    epochs: int = setting(90, "Length, epochs.", changes="result", ge=1)
    decay: Literal["step", "cosine", "constant", "plateau"] = setting(
        "step",
        "How the learning rate falls after the warm-up; plateau: when validation stops improving.",
        changes="result",
    )
    drop_epochs: Floats = setting(
        (30.0, 60.0, 80.0), "step: epochs at which the rate drops.", changes="result"
    )
    drop_steps: Integers = setting(
        (), "step: optimizer steps at which it drops, in place of drop_epochs.", changes="result"
    )
    drop_factor: float = setting(
        0.1, "step, plateau: what a drop multiplies the rate with.", changes="result", gt=0, le=1
    )
    plateau_epochs: int = setting(
        5,
        "plateau: drop after this many epochs without a better top-1; then the count restarts.",
        changes="result",
        ge=1,
    )
    plateau_gain_pct: float = setting(
        0.1,
        "plateau: how much higher than the best so far a top-1 must be to count as better, points.",
        changes="result",
        ge=0,
    )
    warmup_epochs: float = setting(0.0, "Length of the warm-up, epochs.", changes="result", ge=0)
    warmup: Literal["gradual", "constant"] = setting(
        "gradual",
        "gradual: one increment per step up to the peak; constant: warmup_start_lr throughout "
        "(Goyal et al. 2017, 2.2).",
        changes="result",
    )
    warmup_start_lr: float | None = setting(
        None, "Rate at step 0 of the warm-up; by default lr_per_256, at most the peak.",
        changes="result", ge=0
    )  # fmt: skip
    warmup_until_top1_pct: float | None = setting(
        None,
        "Keep warmup_start_lr until the training top-1 over a log period is higher (He et al. "
        "2015, 4.2, ResNet-110: 20).",
        changes="result",
        gt=0,
        lt=100,
    )
    max_steps: int | None = setting(
        None, "Stop after this many optimizer steps.", changes="result", ge=1
    )
    max_minutes: float | None = setting(
        None, "Stop when training has taken so many minutes, validation and start-up left out.",
        changes="result", gt=0
    )  # fmt: skip
    stop_at_top1_pct: float | None = setting(
        None,
        "Stop after the first validation with at least this top-1 (MLPerf: 75.9).",
        changes="result",
        gt=0,
        le=100,
    )


class Eval(Section):
    """Validation: every image counts exactly once, at any world size."""

    every_epochs: int = setting(
        1, "Validate after every so many epochs, and after the last.", changes="nothing", ge=1
    )
    local_batch: int = setting(
        256, "Images per rank in one forward.", changes="result and speed", ge=1
    )
    views: Literal["centre", "ten_crop"] = setting(
        "centre",
        "centre: one crop; ten_crop: corners and center, mirrored too, mean of the probabilities.",
        changes="result and speed",
    )


class Engine(Section):
    """How the computing is done."""

    device: Literal["auto", "cpu", "cuda"] = setting(
        "auto", "auto: the GPU if there is one.", changes="result and speed"
    )
    backend: Literal["auto", "nccl", "gloo"] = setting(
        "auto",
        "What joins the ranks; auto: nccl on GPUs, gloo on CPUs; gloo also lets several ranks "
        "share a GPU, through host memory: to try things out, not for speed.",
        changes="result and speed",
        added=True,
    )
    precision: Literal["auto", "bf16", "fp16", "tf32", "fp32"] = setting(
        "auto",
        "auto: bf16 where the hardware has it, else fp16 on a GPU and fp32 on a CPU.",
        changes="result and speed",
    )
    channels_last: bool = setting(True, "Keep tensors in NHWC order.", changes="result and speed")
    compile: bool | Auto = setting(
        "auto", "torch.compile the network; auto: on a GPU.", changes="result and speed"
    )
    compile_mode: Literal[
        "default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"
    ] = setting(
        "default",
        "torch.compile's mode; reduce-overhead: with CUDA graphs; max-autotune: also with kernels "
        "chosen by trying them, which takes long.",
        changes="result and speed",
    )
    compile_ddp: bool = setting(
        False,
        "Compile DDP's own code around the network too, in which torch breaks the graph (not "
        "counted as graph breaks); the network's graph is cut at bucket borders either way.",
        changes="result and speed",
    )
    coordinate_descent: bool = setting(
        False,
        "torch.compile: tune the kernels that it writes for a GPU by trying, step by step; both "
        "max-autotune modes do so by themselves.",
        changes="result and speed",
        added=True,
    )
    cudnn_benchmark_limit: int = setting(
        10,
        "cuDNN: so many algorithms are tried for each convolution on a GPU; 0: all.",
        changes="result and speed",
        added=True,
        ge=0,
    )
    pad_stem: bool = setting(
        False,
        "Give the first convolution a fourth channel of zeros, in its images and weights: the "
        "same result by other kernels; checkpoints keep three.",
        changes="result and speed",
        added=True,
    )
    bucket_mb: float = setting(
        25.0, "DDP: size of a gradient bucket, MiB.", changes="result and speed", gt=0
    )
    static_graph: bool = setting(
        False, "DDP: promise that the graph never changes.", changes="result and speed"
    )
    bucket_view: bool = setting(
        True,
        "DDP: gradients lie in the buckets; false: they are copied in and out.",
        changes="speed",
    )
    send_gradients: Literal["fp32", "bf16"] = setting(
        "fp32",
        "DDP: bf16 rounds gradients and sums them in bf16: half the bytes.",
        changes="result and speed",
    )
    fused_optimizer: bool | Auto = setting(
        "auto",
        "SGD in one kernel; auto: true; false: with fp16, the host then waits in each step.",
        changes="result and speed",
    )
    threads: int = setting(
        0, "CPU threads for computing, per rank; 0: the rank's cores.",
        changes="result and speed", ge=0
    )  # fmt: skip
    deterministic: bool = setting(
        False, "Only deterministic kernels: slower, equal bits on a GPU.",
        changes="result and speed"
    )  # fmt: skip
    timeout_s: float = setting(
        300.0,
        "A rank that is waited for longer ends the run, with a stack of each rank, s.",
        changes="nothing", gt=0
    )  # fmt: skip
    warm_up_timeout_s: float = setting(
        3600.0, "The same while starting and compiling, s.", changes="nothing", gt=0
    )


class Checkpoint(Section):
    """When the run is saved, besides at the end of each epoch, and what is kept."""

    every_steps: int = setting(
        0, "Save every so many steps; 0: not by steps.", changes="nothing", ge=0
    )
    every_minutes: float = setting(
        5.0, "Save when so much time has passed, minutes; 0: not by time.", changes="nothing", ge=0
    )
    keep: int = setting(2, "How many of the newest to keep.", changes="nothing", ge=1)
    keep_every_epochs: int = setting(
        0, "Keep also one of every so many epochs; 0: none.", changes="nothing", ge=0
    )


class Profile(Section):
    """Some steps under torch's profiler."""

    steps: str | None = setting(
        None,
        "Profile rank 0 from step FIRST up to LAST, as 20:30, counted from 0: a trace and the "
        "costliest kernels of each phase, in the run folder; by default none.",
        changes="speed",
        pattern=r"^\d+:\d+$",
    )

    @property
    def first_and_last(self) -> tuple[int, int] | None:
        """As numbers."""
        if self.steps is None:
            return None
        first, last = self.steps.split(":")
        return int(first), int(last)


class Log(Section):
    """What is written while training, and where it is mirrored."""

    every_steps: int = setting(50, "Steps per row.", changes="nothing", ge=1)
    wandb: Literal["auto", "online", "offline", "off"] = setting(
        "auto",
        "Mirror to Weights & Biases; auto: online if a key is configured, else offline.",
        changes="nothing",
    )
    project: str = setting("imagenet-harness", "W&B project.", changes="nothing", min_length=1)
    entity: str | None = setting(None, "W&B entity (user or team).", changes="nothing")
    tags: Words = setting((), "W&B tags, besides the automatic ones.", changes="nothing")
