"""Loader: makes the batches of a set from the resolved data settings."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from harness import config as cfg
from harness.data import dali_info, stream
from harness.data.batch import Batches
from harness.data.dataset import allow_open_files
from harness.data.sets import Images
from harness.data.stream import Samples, Split
from harness.distributed import World
from harness.errors import BadInput

if TYPE_CHECKING:
    from harness.data.calibrate import Demand
    from harness.data.dali import DaliBatches

ENDLESS = 2**30  # epochs, which are never reached


@dataclass(frozen=True)
class Loader:
    """Makes this rank's batches; one Loader serves both training and validation."""

    data: cfg.Data
    world: World
    decode: str
    threads: int

    @staticmethod
    def resolve(
        data: cfg.Data,
        world: World,
        train: Images | None = None,
        split: Split | None = None,
        demand: Demand | None = None,
    ) -> Loader:
        """Return the Loader of these settings, with `auto` and 0 replaced by actual values.

        Args:
            train, split: what `auto` measures the ways to decode with; without, it picks `gpu`.
            demand: how many images per second the training could consume.

        Raises:
            BadInput: decoding on a GPU without a GPU or nvJPEG; DALI is not installed, installed
                twice, or built for a newer driver.
        """
        if data.source == "dali":
            _check_dali(data, world)
        if data.decode in ("gpu", "split") and not world.on_gpu:
            raise BadInput(f"data.decode: {data.decode} was asked for, but this process has no GPU")
        allow_open_files()
        on_gpu = Loader(data, world, "gpu", data.threads or world.cores())
        if data.source == "synthetic":
            return replace(on_gpu, decode="none")
        if data.decode != "auto":
            return replace(on_gpu, decode=data.decode)
        if not world.on_gpu or data.source != "dali":
            return replace(on_gpu, decode="cpu")
        if train is None or split is None:
            return on_gpu
        return replace(on_gpu, decode=on_gpu._best_decode(train, split, demand))

    def _best_decode(self, images: Images, split: Split, demand: Demand | None) -> str:
        """Return the best way to decode, measured on this node unless its cache has the rates."""
        from harness.data import calibrate
        from harness.data.dali import release_memory

        matters = {"image_px", "augment", "hw_decoder_load", "largest_px", "prefetch_batches"}
        key = {
            "device": torch.cuda.get_device_name(self.world.device),
            **dali_info.versions(),
            "threads": self.threads,
            "local_batch": split.local_batch,
            "images": images.digest,
            **self.data.model_dump(include=matters),
        }
        gpu_decodes = dali_info.has_nvjpeg(dali_info.installed().cuda)
        ways = [way for way in calibrate.WAYS if way != "gpu" or gpu_decodes]
        samples = self.samples(images, split)
        way = calibrate.decode_on(
            key, ways, lambda way: replace(self, decode=way).train(images, split), demand=demand,
            read_once=lambda: calibrate.read_once(self.data, images, samples, self.threads),
        )  # fmt: skip
        release_memory()  # of the ways that were measured
        return way

    def samples(
        self, images: Images, split: Split, epoch: int = 0, step: int = 0, epochs: int = ENDLESS
    ) -> Iterator[Samples]:
        """Return the samples of this rank's training micro-batches from (epoch, step) on."""
        return stream.train_samples(
            images.stream, split, self.world.rank, epoch=epoch, step=step, epochs=epochs
        )

    def train(
        self, images: Images, split: Split, *, epoch: int = 0, step: int = 0, epochs: int = ENDLESS
    ) -> Batches:
        """Return this rank's micro-batches from (epoch, step) to the end of training."""
        samples = self.samples(images, split, epoch, step, epochs)
        return self._batches(images, samples, split.local_batch)

    def decoding(self, images: Images, split: Split) -> DaliBatches | None:
        """Return a pipeline that only decodes the training batches; None without DALI."""
        if images.dataset is None or self.data.source != "dali":
            return None
        samples = self.samples(images, split)
        return self._dali(images, samples, split.local_batch, decode_only=True)

    def eval(self, images: Images, local_batch: int) -> Batches:
        """Return this rank's batches of `local_batch` validation images, all views, without end."""
        endless = itertools.chain.from_iterable(
            stream.eval_samples(images.stream, local_batch, self.world.rank, self.world.size)
            for _ in itertools.count()
        )
        return self._batches(images, endless, local_batch * images.stream.law.views)

    def _batches(self, images: Images, samples: Iterator[Samples], local_batch: int) -> Batches:
        data, px, device = self.data, self.data.image_px, self.world.device
        if images.dataset is None:
            from harness.data.synthetic import SyntheticBatches

            return SyntheticBatches(samples, local_batch=local_batch, out_px=px, device=device)
        if data.source == "torchvision":
            from harness.data.torch_loader import TorchBatches

            return TorchBatches(
                images.dataset, samples, images.stream.law.steps, out_px=px, device=device,
                threads=self.threads, prefetch=data.prefetch_batches,
            )  # fmt: skip
        return self._dali(images, samples, local_batch, decode_only=False)

    def _dali(
        self, images: Images, samples: Iterator[Samples], local_batch: int, *, decode_only: bool
    ) -> DaliBatches:
        # Imported here: it takes a second, and some systems have no wheel of DALI.
        from harness.data.dali import DaliBatches

        assert images.dataset is not None
        data = self.data
        width_px, height_px = data.largest_px
        return DaliBatches(
            images.dataset, samples, images.stream.law.steps, local_batch=local_batch,
            out_px=data.image_px, device=self.world.device, decode=self.decode, read=data.read,
            read_ahead_batches=data.read_ahead_batches, threads=self.threads,
            prefetch=data.prefetch_batches, decode_only=decode_only,
            nvjpeg={"hw_decoder_load": data.hw_decoder_load, "preallocate_width_hint": width_px,
                    "preallocate_height_hint": height_px},
        )  # fmt: skip


def _check_dali(data: cfg.Data, world: World) -> None:
    dali = dali_info.installed()
    if misfit := dali_info.misfit(dali, dali_info.driver_cuda() if world.on_gpu else None):
        raise BadInput(f"data.source: {misfit[0]}; {misfit[1]}")
    if data.decode == "gpu" and world.on_gpu and not dali_info.has_nvjpeg(dali.cuda):
        raise BadInput(
            f"data.decode: gpu needs nvJPEG, and no library of it loads here; install "
            f"nvidia-nvjpeg-cu{dali.cuda}, or use cpu or split"
        )
