"""What DALI makes of the stream: the right pixels at any depth, or an error that names the file."""

from __future__ import annotations

import itertools
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import draw_tree
from PIL import Image
from pipelines import CENTRE, CPU, PADDED, PX, RESIZED, dali, in_pillow, pixels, samples_of
from ranks import in_ranks

from harness.data import augment
from harness.data import dali as pipeline
from harness.data.dali import DaliBatches
from harness.data.dataset import Dataset, open_folder
from harness.data.stream import Augmentation, Samples
from harness.data.torch_loader import TorchBatches
from harness.errors import RunFailed

pytestmark = pytest.mark.gpu_too


@pytest.mark.parametrize("law", [RESIZED, CENTRE], ids=["train", "eval"])
def test_dali_shows_what_pillow_shows(photos: Path, law: Augmentation) -> None:
    """JPEG decoders may round differently; antialiased resizing must follow the same law.

    Without antialiasing the mean difference is ten times as large.
    """
    dataset = open_folder(photos)
    ours, theirs = list(dali(dataset, law)), in_pillow(dataset, law)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(mine.rows, other.rows)
        assert torch.equal(mine.labels.cpu(), other.labels)
    difference = np.abs(pixels(ours).astype(float) - pixels(theirs)).mean(axis=(1, 2, 3))
    assert difference.mean() < 0.35, "of 255"
    assert difference.max() < 0.6


def test_png_is_equal_to_the_last_bit(icons: Path) -> None:
    dataset = open_folder(icons)
    ours = pixels(dali(dataset, PADDED, px=32))
    np.testing.assert_array_equal(ours, pixels(in_pillow(dataset, PADDED, px=32)))
    assert (ours == 0).all(axis=1).any(), "some crop must reach over the edge into black"


def test_the_pixels_are_those_of_the_window(icons: Path) -> None:
    """Against the file itself, by plain array indexing."""
    dataset = open_folder(icons)
    for batch in dali(dataset, PADDED, px=32):
        for image, row in zip(batch.images.cpu(), batch.rows, strict=True):
            one = Samples.from_rows(row[None])
            whole = np.asarray(Image.open(dataset.where(int(one.ids[0]))).convert("RGB"))
            x, y = one.cut[0] + 4
            cut = np.pad(whole, ((4, 4), (4, 4), (0, 0)))[y : y + 32, x : x + 32]
            expected = cut[:, ::-1] if one.flip[0] else cut
            np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)
            assert one.labels[0] == dataset.labels[one.ids[0]]


def test_batches_are_channels_last_views(photos: Path) -> None:
    batch = next(dali(open_folder(photos), RESIZED))
    assert batch.images.shape == (10, 3, PX, PX)
    assert batch.images.stride() == (PX * PX * 3, 1, PX * 3, 3)
    assert batch.images.dtype == torch.uint8
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    again = batch.images.contiguous(memory_format=torch.channels_last)
    assert again.data_ptr() == batch.images.data_ptr(), "no byte may have to move"


def test_any_depth_and_way_of_reading_gives_the_same_bytes(photos: Path) -> None:
    """A buffer that is reused while DALI still reads it would show later batches' data."""
    dataset = open_folder(photos)

    def shown(**how: Any) -> np.ndarray:
        found = []
        for batch in dali(dataset, RESIZED, samples=samples_of(dataset, RESIZED, 10, 3), **how):
            found.append(batch.images.clone().cpu().numpy())
            # Dirty the heap, so that freed memory would not keep its old content by luck.
            _ = [np.full(50_000, 255, dtype=np.uint8) for _ in range(20)]
        return np.concatenate(found)

    alone = shown(depth=1, read="pread")
    for depth, read in itertools.product((1, 2, 4), ("mmap", "pread")):
        np.testing.assert_array_equal(shown(depth=depth, read=read), alone)


def test_batches_stay_valid_while_they_are_held(photos: Path) -> None:
    held = [(batch.images, batch.images.clone()) for batch in dali(open_folder(photos), RESIZED, 5)]
    assert len(held) == 20
    assert all(torch.equal(kept, copy) for kept, copy in held)


def test_a_pipeline_built_in_the_middle_goes_on_the_same(photos: Path) -> None:
    dataset = open_folder(photos)
    whole = pixels(dali(dataset, RESIZED))
    rest = itertools.islice(samples_of(dataset, RESIZED, 10), 3, None)
    np.testing.assert_array_equal(pixels(dali(dataset, RESIZED, samples=rest)), whole[30:])


def test_exif_rotation_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "class0").mkdir()
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 256, (8, 12, 3), dtype=np.uint8)).resize((96, 64))
    rotated = Image.Exif()
    rotated[0x0112] = 6
    image.save(tmp_path / "class0" / "a.jpg", exif=rotated, quality=95)
    dataset = open_folder(tmp_path)
    assert (dataset.width[0], dataset.height[0]) == (96, 64)
    law = augment.center_crop(0, 64)
    ours = pixels(dali(dataset, law, batch=1)).astype(float)
    assert np.abs(ours - pixels(in_pillow(dataset, law, batch=1))).mean() < 0.5


@pytest.mark.parametrize("content", [b"\xff\xd8 no image at all", None], ids=["garbage", "cut"])
@pytest.mark.parametrize("arm", ["dali", "torchvision"])
def test_an_undecodable_image_is_named(tmp_path: Path, arm: str, content: bytes | None) -> None:
    rng = np.random.default_rng(0)
    (tmp_path / "class0").mkdir()
    for number in range(40):
        noise = Image.fromarray(rng.integers(0, 256, (80, 80, 3), dtype=np.uint8))
        noise.save(tmp_path / "class0" / f"{number:02d}.jpg")
    bad = tmp_path / "class0" / "23.jpg"
    whole = bad.read_bytes()
    if content is None:
        bad.write_bytes(whole[: len(whole) // 3])
    dataset = open_folder(tmp_path)
    if content is not None:
        # Of the same size, since a file that changed its size is found without decoding.
        bad.write_bytes(content.ljust(len(whole), b"\0"))
    law = augment.center_crop(0, 64)
    # No worker processes here: forked from a process with DALI's threads, they may crash.
    batches = (
        dali(dataset, law)
        if arm == "dali"
        else TorchBatches(
            dataset, samples_of(dataset, law, 10), law.steps, out_px=64, device=CPU, threads=0,
            prefetch=2,
        )
    )  # fmt: skip
    with pytest.raises(RunFailed, match=r"class0/23\.jpg: sample 23 does not decode") as raised:
        list(batches)
    assert "\n" not in str(raised.value)


def _without_shared_memory(root: Path) -> str:
    """What the torchvision arm's workers end with where /dev/shm is full."""

    def full(tensor: torch.Tensor) -> None:
        raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: full (28)")

    setattr(torch.Tensor, "share_memory_", full)  # noqa: B010
    dataset, law = open_folder(root), augment.center_crop(0, 64)
    arm = TorchBatches(
        dataset, samples_of(dataset, law, 10), law.steps, out_px=64, device=CPU, threads=2,
        prefetch=2,
    )  # fmt: skip
    with pytest.raises(RunFailed) as raised:
        next(arm)
    return str(raised.value)


def test_workers_without_shared_memory_end_at_once_and_say_so(photos: Path) -> None:
    """Sent by DataLoader's own thread, the batch would be lost, and waited for without an end."""
    (said,) = in_ranks(1, _without_shared_memory, photos)
    assert said.startswith("data.source: torchvision: unable to allocate shared memory(shm) for ")
    assert said.endswith("make /dev/shm larger: docker --shm-size 8g, or mount -o "
                         "remount,size=8g /dev/shm")  # fmt: skip


def test_the_pipeline_warns_of_nothing(photos: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert len(list(dali(open_folder(photos), RESIZED))) == 10


@pytest.mark.shared_data
def test_real_photos_look_as_in_pillow(shared_data: Path, tmp_path: Path) -> None:
    import tarfile

    with tarfile.open(shared_data / "data" / "imagenet-sample-250.tar") as tar:
        tar.extractall(tmp_path, filter="data")
    dataset = open_folder(tmp_path / "imagenet-sample")
    train_law = augment.resized_crop((0.08, 1), (3 / 4, 4 / 3), 224, flip=True)
    for law in (train_law, augment.center_crop(256, 224)):
        ours = pixels(dali(dataset, law, 25, 224)).astype(float)
        difference = np.abs(ours - pixels(in_pillow(dataset, law, 25, 224)))
        assert difference.mean() < 0.2, "of 255"


def devices(decode: str, law: Augmentation, *, decode_only: bool = False) -> dict[str, str]:
    """Where each operator of the graph of a GPU runs; nothing is built, so no GPU is needed."""
    graph = pipeline._graph(
        batch_size=1, num_threads=1, device_id=0, exec_dynamic=True, feed=iter([]),
        steps=law.steps, out_px=PX, decode=decode, nvjpeg={}, to_gpu=True,
        decode_only=decode_only,
    )  # fmt: skip
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        graph._build_graph()
    specs = [str(operator.spec) for operator in graph._ops]
    named = {spec.split("OpSpec for ")[1].split(":")[0]: spec for spec in specs}
    return {
        name: spec.split("device: ")[1].split()[0]
        for name, spec in named.items()
        if name not in ("ExternalSource", "Constant")
    } | {"fancy": str("jpeg_fancy_upsampling: True" in str(specs))}


def test_the_ways_to_decode_differ_only_in_where_operators_run() -> None:
    window = "decoders__ImageSlice"
    places = {
        "cpu": {window: "cpu", "Resize": "cpu", "Flip": "cpu"},
        "split": {window: "cpu", "Resize": "gpu", "Flip": "gpu"},
        "gpu": {window: "mixed", "Resize": "gpu", "Flip": "gpu"},
    }
    for decode, expected in places.items():
        assert devices(decode, RESIZED) == expected | {"fancy": "False"}
    # Whole images, as in validation, with libjpeg-turbo's upsampling of colors.
    for decode, place in (("cpu", "cpu"), ("split", "cpu"), ("gpu", "mixed")):
        found = devices(decode, CENTRE)
        assert found["decoders__Image"] == place
        assert found["Slice"] == found["Flip"] == ("cpu" if decode == "cpu" else "gpu")
        assert found["fancy"] == str(decode == "gpu")
    # What is timed as decoding needs the pixels, not only their shape.
    assert devices("gpu", RESIZED, decode_only=True)["Slice"] == "gpu"
    assert "Slice" not in devices("split", RESIZED, decode_only=True)


class Faulty:
    """A pipeline of a GPU whose run fails."""

    def __init__(self, text: str) -> None:
        self.text, self.streams = text, []

    def run(self, *stream: Any) -> None:
        self.streams += stream
        raise RuntimeError(self.text)


def on_a_made_gpu(
    monkeypatch: pytest.MonkeyPatch, dataset: Dataset, text: str, decode: str = "gpu"
) -> tuple[DaliBatches, Faulty]:
    """Batches of a GPU that is not there, and its pipeline, which fails with this text."""
    build = DaliBatches._build
    there = torch.device("cuda", 0)
    with monkeypatch.context() as patch:
        patch.setattr(DaliBatches, "_build", lambda self, *_: None)
        batches = dali(dataset, CENTRE, decode=decode, device=there)
    monkeypatch.setattr(DaliBatches, "_build", build)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: f"stream of {device}")
    batches._in_flight.extend(samples_of(dataset, CENTRE, 10))
    batches._pipeline = faulty = Faulty(text)
    return batches, faulty


OPERATOR = "Critical error in pipeline:\nError in mixed operator `nvidia.dali.fn.decoders.image`,\n"


@pytest.mark.parametrize(
    ("text", "kind", "said"),
    [
        (OPERATOR + "CUDA allocation failed\nCan't allocate 129499136 bytes on device 0.",
         torch.OutOfMemoryError, "--data.prefetch-batches 1, --data.largest-px 0,0 or --data"),
        (OPERATOR + "nvJPEG error (5): NVJPEG_STATUS_ALLOCATOR_FAILURE", torch.OutOfMemoryError,
         "NVJPEG_STATUS_ALLOCATOR_FAILURE"),
        (OPERATOR + "Can't allocate 77 bytes on host.", RunFailed, "no memory from the host"),
        (OPERATOR + "[/opt/dali/a.cc:12] CUDA runtime API error cudaErrorIllegalAddress (700):\n"
         "an illegal memory access was encountered", RunFailed,
         "a CUDA error in DALI, not in an image: CUDA runtime API error cudaErrorIllegalAddress"),
    ],
)  # fmt: skip
def test_a_fault_of_the_machine_is_no_broken_image(
    photos: Path, monkeypatch: pytest.MonkeyPatch, text: str, kind: type[Exception], said: str
) -> None:
    batches, faulty = on_a_made_gpu(monkeypatch, open_folder(photos), text)
    monkeypatch.setattr(batches, "_bad_image", lambda error: pytest.fail("no image is to blame"))
    with pytest.raises(kind, match=said.replace("(", r"\(")) as raised:
        next(batches)
    assert faulty.streams == ["stream of cuda:0"], "the outputs come on torch's stream"
    assert "does not decode" not in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_broken_image_is_looked_for_on_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_tree(tmp_path, classes=1, per_class=30, size=lambda k: (80, 80), suffix=".jpg")
    dataset = open_folder(tmp_path)
    batches, _ = on_a_made_gpu(monkeypatch, dataset, OPERATOR + "Failed to decode")
    with pytest.raises(RunFailed, match=r"the GPU does not decode .* set --data\.decode cpu"):
        next(batches)
    other, _ = on_a_made_gpu(monkeypatch, dataset, "something unknown")
    with pytest.raises(RuntimeError, match="something unknown"):
        next(other)
    bad = dataset.where(17)
    Path(bad).write_bytes(b"\xff\xd8 no image at all".ljust(Path(bad).stat().st_size, b"\0"))
    with pytest.raises(RunFailed, match="sample 17 does not decode"):
        next(batches)


def test_what_is_lent_is_held_until_the_gpu_has_come_by(monkeypatch: pytest.MonkeyPatch) -> None:
    class Event:
        """Done when the test says so, or once it is waited for."""

        done, waited = False, 0

        def record(self, stream: str) -> None:
            events.append(self)

        def query(self) -> bool:
            return self.done

        def synchronize(self) -> None:
            self.done, Event.waited = True, Event.waited + 1

    events: list[Event] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    held = pipeline.BuffersInUse()
    for n in range(4):
        held.add(n, "stream")  # type: ignore[arg-type]
    assert [n for _, n in held._held] == [0, 1, 2, 3]
    events[0].done = events[1].done = True
    held.add(4, "stream")  # type: ignore[arg-type]
    assert [n for _, n in held._held] == [2, 3, 4]
    assert Event.waited == 0, "the host waits for nothing"
    for n in range(5, 20):
        held.add(n, "stream")  # type: ignore[arg-type]
    assert len(held._held) == pipeline.MOST_IN_USE, "memory has a bound"
    assert Event.waited == 18 - pipeline.MOST_IN_USE
    held.wait(leave=0)
    assert not held._held


@pytest.mark.gpu
@pytest.mark.parametrize("law", [RESIZED, CENTRE], ids=["train", "eval"])
@pytest.mark.parametrize("decode", ["cpu", "split", "gpu"])
def test_on_a_gpu_the_pixels_are_nearly_the_same(
    photos: Path, decode: str, law: Augmentation
) -> None:
    dataset = open_folder(photos)
    device = torch.device("cuda", 0)
    batches = list(dali(dataset, law, decode=decode, device=device))
    assert batches[0].images.device == device
    assert batches[0].images.is_contiguous(memory_format=torch.channels_last)
    ours = np.concatenate([batch.images.cpu().numpy() for batch in batches]).astype(float)
    apart = np.abs(ours - pixels(in_pillow(dataset, law))).mean()
    # A GPU decodes windows with plain chroma upsampling: 1.78 was seen on an H100.
    assert apart < (0.35 if decode == "cpu" else 2.0)
    for batch, other in zip(batches, in_pillow(dataset, law), strict=True):
        np.testing.assert_array_equal(batch.rows, other.rows)
        assert torch.equal(batch.labels.cpu(), other.labels)


@pytest.mark.gpu
@pytest.mark.parametrize("decode", ["cpu", "split"])
def test_the_host_waits_for_no_batch_and_none_is_overwritten(photos: Path, decode: str) -> None:
    """While the stream is busy, DALI makes more: a buffer used again too early would show those."""
    dataset, device = open_folder(photos), torch.device("cuda", 0)
    alone = dali(dataset, RESIZED, decode=decode, device=device)
    expected = [batch.images.cpu() for batch in alone]
    kept, behind = [], 0
    for batch in dali(dataset, RESIZED, decode=decode, device=device):
        behind += not torch.cuda.current_stream(device).query()
        kept.append(batch)
        torch.cuda._sleep(100_000_000)  # some 50 ms
    assert behind > len(kept) // 2
    for batch, images in zip(kept, expected, strict=True):
        assert torch.equal(batch.images.cpu(), images)
