"""The DALI pipeline: decodes and crops the stream's samples; it holds no random operator, no state.

One function builds the graph for training and validation, on the CPU and on the GPU. This is the
only file that imports DALI.
"""

import os
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from nvidia.dali import backend, fn, pipeline_def, types

from harness.data import dali_info
from harness.data.augment import Steps
from harness.data.batch import Batch, as_nchw
from harness.data.dataset import Dataset, Read, undecodable
from harness.data.files import Bytes, read_ahead
from harness.data.stream import Samples
from harness.errors import RunFailed

MOST_IN_USE = 8  # batches that the host runs ahead of the GPU; their memory is not reused then


class DaliBatches:
    """An iterator of batches that DALI's own threads prepare ahead.

    Args:
        samples: the micro-batches, each of `local_batch` images.
        decode: `cpu`; `gpu` (by nvJPEG); or `split` (decoded on the CPU, the rest on the GPU).
        nvjpeg: options of DALI's decoder with `gpu`.
        decode_only: build a pipeline that only decodes, for `decode()`.

    Raises (from next):
        RunFailed: an image does not decode (the message names sample and file), a CUDA error, or
            no host memory.
        torch.OutOfMemoryError: no GPU memory.
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
        nvjpeg: Mapping[str, Any] | None = None,
        decode_only: bool = False,
    ) -> None:
        self._dataset, self._samples, self._steps = dataset, samples, steps
        self._read, self._read_ahead, self._out_px = read, read_ahead_batches, out_px
        self._decode, self._nvjpeg, self._decode_only = decode, nvjpeg or {}, decode_only
        self._device, self._on_gpu = device, device.type == "cuda"
        # All batches that DALI may be working on, so that an error can be traced to its file.
        self._in_flight: deque[Samples] = deque(maxlen=2 * prefetch + 2)
        self._in_use = BuffersInUse()
        self._pipeline = self._build(self._feed(), local_batch, threads, prefetch, self._on_gpu)

    def __iter__(self) -> Iterator[Batch]:
        return self

    def decode(self) -> None:
        """Decode the next batch of a `decode_only` pipeline, for benchmarks."""
        assert self._decode_only
        self._run()

    def _run(self) -> Any:
        """Return the next outputs; on a GPU in the order of torch's stream, without a host wait."""
        stream = [torch.cuda.current_stream(self._device)] if self._on_gpu else []
        try:
            return self._pipeline.run(*stream)
        except RuntimeError as error:
            raise dali_info.machine_error(error) or self._bad_image(error) or error from None

    def __next__(self) -> Batch:
        images, labels, rows = outputs = self._run()
        pixels, classes = self._as_torch(images), self._as_torch(labels)
        if self._on_gpu:
            self._in_use.add(outputs, torch.cuda.current_stream(self._device))
        rows_on_host = torch.from_dlpack(rows.as_tensor()).numpy()
        return Batch(as_nchw(pixels), classes.flatten(), rows_on_host)

    def _as_torch(self, output: Any) -> torch.Tensor:
        """Return a view on the CPU, a copy on a GPU (0.03 ms for 256 images).

        When torch frees a view, a thread of DALI synchronizes the whole device: that would stall
        every step, and break a CUDA graph that is being captured at that moment.
        """
        if not self._on_gpu:
            return torch.from_dlpack(output.as_tensor())
        return torch.as_tensor(output.as_tensor(), device=self._device).clone()

    def close(self) -> None:
        """Stop DALI's threads."""
        self._in_use.wait(leave=0)
        del self._pipeline

    def _feed(self) -> Iterator[tuple[Any, ...]]:
        read = self._dataset.reader(self._read, soon=bool(self._read_ahead))
        for samples, encoded in read_ahead(self._samples, read, self._read_ahead):
            self._in_flight.append(samples)
            yield inputs(samples, encoded, self._steps)

    def _build(
        self, feed: Iterator[Any], batch: int, threads: int, prefetch: int, on_gpu: bool
    ) -> Any:
        pipeline = _graph(
            batch_size=batch,
            num_threads=threads,
            device_id=self._device.index if on_gpu else None,
            prefetch_queue_depth=prefetch,
            exec_dynamic=True,  # each run has its own output buffers: views of them stay valid
            feed=feed,
            steps=self._steps,
            out_px=self._out_px,
            decode=self._decode if on_gpu else "cpu",
            nvjpeg=self._nvjpeg,
            to_gpu=on_gpu,
            decode_only=self._decode_only,
        )
        with warnings.catch_warnings():
            if self._decode_only:  # the inputs for resize, crop and flip are not used
                warnings.filterwarnings("ignore", "The external source node")
            try:
                pipeline.build()
            except RuntimeError as error:
                raise dali_info.machine_error(error) or error from None
        return pipeline

    def _bad_image(self, error: RuntimeError) -> RunFailed | None:
        """Find the first image in flight that does not decode alone on the CPU; return its error.

        None if DALI's error is not about decoding.
        """
        if "decode" not in str(error):
            return None
        singles = [Samples.from_rows(row[None]) for many in self._in_flight for row in many.rows()]
        read = self._dataset.reader(self._read)
        feed = (inputs(one, [read(int(one.ids[0]))], self._steps) for one in singles)
        pipeline = self._build(feed, batch=1, threads=1, prefetch=1, on_gpu=False)
        for one in singles:
            with _codecs_say() as said:
                try:
                    pipeline.run()
                except RuntimeError as reason:
                    why = _reason(reason, said())
                    return RunFailed(undecodable(self._dataset, int(one.ids[0]), why))
        if self._decode != "gpu":
            return None
        return RunFailed(
            f"data.decode: the GPU does not decode an image that the CPU decodes "
            f"({_reason(error)}); set --data.decode cpu"
        )


class BuffersInUse:
    """DALI's outputs that copies on torch's stream may still read.

    DALI does not know that stream and reuses memory to which no reference is held.
    """

    def __init__(self) -> None:
        self._held: deque[tuple[torch.cuda.Event, Any]] = deque()

    def add(self, outputs: Any, stream: torch.cuda.Stream) -> None:
        """Hold these outputs until all work now in the stream is done."""
        event = torch.cuda.Event()
        event.record(stream)
        self._held.append((event, outputs))
        while self._held[0][0].query() and len(self._held) > 1:
            self._held.popleft()
        self.wait(leave=MOST_IN_USE)

    def wait(self, *, leave: int) -> None:
        """Wait for the oldest outputs until at most `leave` are held."""
        while len(self._held) > leave:
            self._held.popleft()[0].synchronize()


def inputs(samples: Samples, encoded: list[Bytes], steps: Steps) -> tuple[Any, ...]:
    """Return the graph's inputs: new arrays or views of files, since DALI keeps them uncopied."""
    flip = samples.flip[:, None].astype(np.int32)
    arrays: list[Any] = [encoded, samples.labels[:, None], samples.rows(), flip]
    if steps.window:
        window = samples.window.astype(np.int32)
        arrays += [window[:, :2].copy(), window[:, 2:].copy()]
    if steps.resize:
        arrays += [samples.resized[:, ::-1].astype(np.float32, order="C")]
    if steps.cut:
        arrays += [samples.cut.astype(np.int32)]
    return tuple(arrays)


@pipeline_def
def _graph(
    feed: Iterator[Any],
    steps: Steps,
    out_px: int,
    decode: str,
    nvjpeg: Mapping[str, Any],
    to_gpu: bool,
    decode_only: bool,
) -> tuple[Any, Any, Any]:
    """Turn encoded bytes into uint8 NHWC: decode, resize, crop and flip, as `steps` needs.

    The ways to decode differ only in where the images move to the GPU: at the end (cpu), after the
    decoder (split), or in the decoder (gpu).
    """
    kinds = [types.UINT8, types.INT64, types.INT64, types.INT32]
    kinds += 2 * steps.window * [types.INT32] + steps.resize * [types.FLOAT]
    kinds += steps.cut * [types.INT32]
    encoded, labels, rows, flip, *rest = fn.external_source(
        source=feed, num_outputs=len(kinds), batch=True, no_copy=True, dtype=kinds, ndim=1
    )
    inputs = iter(rest)  # in the order in which `inputs` lists them
    # torchvision, and so all published accuracies, ignore EXIF rotation.
    options: dict[str, Any] = {"output_type": types.RGB, "adjust_orientation": False}
    options |= {"device": "mixed", **nvjpeg} if decode == "gpu" else {"device": "cpu"}
    if steps.window:
        images = fn.decoders.image_slice(
            encoded, next(inputs), next(inputs), axis_names="WH", **options
        )
    else:
        if decode == "gpu":
            # As in libjpeg-turbo and Pillow. Not for windows: nvJPEG may be wrong at their edges.
            options["jpeg_fancy_upsampling"] = True
        images = fn.decoders.image(encoded, **options)
    if decode_only:
        if decode != "gpu":
            return images.shape(), labels, rows
        # On a GPU the shape is known before the pixels: depend on one row of them.
        return fn.slice(images, start=[0], shape=[1], axes=[0]), labels, rows
    if decode == "split":
        images = images.gpu()
    if steps.resize:
        # As Pillow: a triangle filter that widens when an image shrinks.
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


def release_memory() -> None:
    """Release GPU memory that DALI holds and does not use."""
    backend.ReleaseUnusedMemory()  # type: ignore[attr-defined]


@contextmanager
def _codecs_say() -> Iterator[Callable[[], str]]:
    """Collect what DALI's codecs say of an image; they write it to stderr, not into the error."""
    with open(os.memfd_create("stderr"), "w+", errors="replace") as said:
        stderr = os.dup(2)
        os.dup2(said.fileno(), 2)
        try:
            yield lambda: (said.seek(0), said.read())[1]
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


def _reason(error: RuntimeError, said: str = "") -> str:
    """Return the last error of a codec, else what DALI says that it encountered."""
    lines = [line for line in said.splitlines() if "error" in line.lower()][-1:]
    lines += str(error).rpartition("encountered:")[2].splitlines()
    lines = [re.sub(r"\x1b\[[\d;]*m|\[\S+\]", "", line).strip(" :") for line in lines]
    return next(filter(None, lines))[:200]
