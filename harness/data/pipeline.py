"""The DALI pipeline: decodes what the stream asks for, and holds no randomness and no state.

One function builds the graph for training and validation, on the CPU and on the GPU. The only file
that imports DALI.
"""

from __future__ import annotations

import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, types

from harness.data.ahead import read_ahead
from harness.data.batch import Batch, as_nchw
from harness.data.dataset import Dataset, Read, undecodable
from harness.data.index import Bytes
from harness.data.laws import Steps
from harness.data.stream import Samples
from harness.errors import RunFailed


@dataclass(frozen=True)
class GpuDecoder:
    """Settings of nvJPEG, by DALI's names.

    hw_decoder_load: share of the images that go to the hardware decoder, where a GPU has one.
    preallocate_width_hint, _height_hint: largest image to set memory aside for, px; without, the
        memory grows for epochs, until the largest image came by.
    """

    hw_decoder_load: float = 0.65
    preallocate_width_hint: int = 0
    preallocate_height_hint: int = 0


class DaliBatches:
    """Batches of a stream's samples, made ahead by DALI's own threads.

    Args:
        samples: the micro-batches to make, each of `local_batch` images.
        decode: `cpu`, or `gpu` (nvJPEG; resize and flip on the GPU too).
        decode_only: for `decode()`.

    Raises (from next):
        RunFailed: an image does not decode; names sample and file.
        StopIteration: the samples are used up.
    """

    def __init__(
        self,
        dataset: Dataset,
        samples: Iterator[Samples],
        steps: Steps,
        *,
        local_batch: int,
        out_px: int,
        device: torch.device,
        decode: str,
        read: Read,
        read_ahead_batches: int,
        threads: int,
        prefetch: int,
        gpu_decoder: GpuDecoder = GpuDecoder(),
        decode_only: bool = False,
    ) -> None:
        self._dataset = dataset
        self._read: Read = read
        self._read_ahead = read_ahead_batches
        self._samples, self._steps = samples, steps
        self._out_px, self._device, self._decode = out_px, device, decode
        self._gpu_decoder, self._decode_only = gpu_decoder, decode_only
        # Every batch that DALI may be working on, so that an error can be traced to its file.
        self._in_flight: deque[Samples] = deque(maxlen=2 * prefetch + 2)
        self._pipeline = self._build(self._feed(), local_batch, threads, prefetch)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def decode(self) -> None:
        """Decode the next batch, where that is all that is done: to measure it."""
        assert self._decode_only
        self._run()

    def _run(self) -> tuple[Any, ...]:
        try:
            outputs: tuple[Any, ...] = self._pipeline.run()
        except RuntimeError as error:
            raise self._culprit() or error from None
        return outputs

    def __next__(self) -> Batch:
        images, labels, rows = self._run()
        return Batch(
            images=as_nchw(torch.from_dlpack(images.as_tensor())),
            labels=torch.from_dlpack(labels.as_tensor()).flatten(),
            rows=torch.from_dlpack(rows.as_tensor()).numpy(),
        )

    def close(self) -> None:
        """Stop DALI's threads."""
        del self._pipeline

    def _feed(self) -> Iterator[tuple[Any, ...]]:
        read = self._dataset.reader(self._read, soon=bool(self._read_ahead))
        for samples, encoded in read_ahead(self._samples, read, self._read_ahead):
            self._in_flight.append(samples)
            yield inputs(samples, encoded, self._steps)

    def _build(self, feed: Iterator[Any], batch: int, threads: int, prefetch: int) -> Any:
        on_gpu = self._device.type == "cuda"
        built = _graph(
            batch_size=batch,
            num_threads=threads,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=prefetch,
            exec_dynamic=True,  # its outputs are nobody else's: views of them stay valid
            feed=feed,
            steps=self._steps,
            out_px=self._out_px,
            gpu_decoder=self._gpu_decoder if self._decode == "gpu" else None,
            to_gpu=on_gpu,
            decode_only=self._decode_only,
        )
        with warnings.catch_warnings():
            if self._decode_only:  # what comes after decoding is fed and not used
                warnings.filterwarnings("ignore", "The external source node")
            built.build()
        return built

    def _culprit(self) -> RunFailed | None:
        """The first image in flight that does not decode by itself."""
        tables = [samples.rows() for samples in self._in_flight]
        singles = [Samples.from_rows(row[None]) for rows in tables for row in rows]
        read = self._dataset.reader(self._read)
        feed = (inputs(one, [read(int(one.ids[0]))], self._steps) for one in singles)
        pipeline = self._build(feed, batch=1, threads=1, prefetch=1)
        for one in singles:
            try:
                pipeline.run()
            except RuntimeError as error:
                return RunFailed(undecodable(self._dataset, int(one.ids[0]), _reason(error)))
        return None


def inputs(samples: Samples, encoded: list[Bytes], steps: Steps) -> tuple[Any, ...]:
    """The graph's inputs. Always new arrays or views of files: DALI keeps them, no copy."""
    window = samples.window.astype(np.int32)
    made = [
        encoded,
        samples.labels[:, None],
        samples.rows(),
        samples.flip[:, None].astype(np.int32),
    ]
    if steps.window:
        made += [window[:, :2].copy(), window[:, 2:].copy()]
    if steps.resize:
        made += [samples.resized[:, ::-1].astype(np.float32, order="C")]
    if steps.cut:
        made += [samples.cut.astype(np.int32)]
    return tuple(made)


@pipeline_def
def _graph(
    feed: Iterator[Any],
    steps: Steps,
    out_px: int,
    gpu_decoder: GpuDecoder | None,
    to_gpu: bool,
    decode_only: bool,
) -> tuple[Any, Any, Any]:
    """Encoded bytes to uint8 NHWC: decode, resize, cut, flip, as far as the law needs it."""
    geometry = 2 * steps.window * [types.INT32]
    geometry += steps.resize * [types.FLOAT] + steps.cut * [types.INT32]
    kinds = [types.UINT8, types.INT64, types.INT64, types.INT32, *geometry]
    encoded, labels, rows, flip, *rest = fn.external_source(
        source=feed, num_outputs=len(kinds), batch=True, no_copy=True, dtype=kinds, ndim=1
    )
    inputs = iter(rest)  # in the order in which `inputs` lists them
    # torchvision, and so every published accuracy, ignores EXIF rotation.
    how: dict[str, Any] = {"output_type": types.RGB, "adjust_orientation": False}
    how |= {"device": "mixed", **vars(gpu_decoder)} if gpu_decoder else {"device": "cpu"}
    if steps.window:
        images = fn.decoders.image_slice(
            encoded, next(inputs), next(inputs), axis_names="WH", **how
        )
    else:
        images = fn.decoders.image(encoded, **how)
    if decode_only:
        return images.shape(), labels, rows
    if steps.resize:
        # Pillow's law: a triangle filter that widens when an image shrinks.
        images = fn.resize(
            images, size=next(inputs), interp_type=types.INTERP_LINEAR, antialias=True
        )
    if steps.cut:
        images = fn.slice(
            images, start=next(inputs), shape=[out_px, out_px], axis_names="WH",
            out_of_bounds_policy="pad", fill_values=0,
        )  # fmt: skip
    images = fn.flip(images, horizontal=flip)
    if to_gpu:
        images, labels = images.gpu(), labels.gpu()
    return images, labels, rows


def _reason(error: RuntimeError) -> str:
    """The one sentence of DALI's report that says what is wrong with the image."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = next((line for line in lines if "[" in line and "]" in line), lines[0])
    return said.split("]", 1)[-1].strip()[:200]
