"""Training and validation metrics: sums on the device, read by the host only at log points."""

import math
import resource
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.data.stream import PADDING
from harness.distributed import World
from harness.errors import NotFinite


@dataclass(frozen=True)
class Score:
    """Images, their mean loss and correct predictions, summed over all ranks."""

    images: int
    loss: float
    correct1: int
    correct5: int

    @property
    def top1_pct(self) -> float:
        """Share of images whose first prediction is correct."""
        return 100 * self.correct1 / self.images

    @property
    def top5_pct(self) -> float:
        """Share of images whose label is among the first five predictions."""
        return 100 * self.correct5 / self.images


class TrainMetrics:
    """Loss of each step and correct predictions over one log period."""

    def __init__(self, most_steps: int, device: torch.device) -> None:
        self._losses = torch.zeros(most_steps, dtype=torch.float64, device=device)
        self._correct = torch.zeros(2, dtype=torch.int64, device=device)
        self._steps = self._images = 0

    def open_period(self) -> tuple[Tensor, Tensor]:
        """Correct predictions [2] and the loss of each step [steps] since the last log point."""
        return self._correct, self._losses[: self._steps]

    def load_state_dict(
        self, correct: Tensor, losses: Tensor, world: World, images_per_step: int
    ) -> None:
        """Continue an open period of the ranks that saved it: [ranks, 2] and [ranks, steps].

        With the same number of ranks, each gets its own back, which keeps the order of summation
        and so the bits.
        """
        if len(losses) != world.size:
            # Rank 0 gets everything, the others nothing; read() divides by the number of ranks.
            correct = (correct.sum(0) * world.is_main).expand(world.size, -1)
            losses = (losses.mean(0) * world.size * world.is_main).expand(world.size, -1)
        self._steps = losses.shape[1]
        self._images = self._steps * images_per_step
        self._correct.copy_(correct[world.rank])
        self._losses = self._losses.new_zeros(self._steps + len(self._losses))
        self._losses[: self._steps] = losses[world.rank]

    def add(self, loss: Tensor, logits: Tensor, labels: Tensor, share: float) -> None:
        """Add a micro-batch, which makes up `share` of its step; no host read."""
        self._losses[self._steps] += loss.detach() * share
        self._correct += correct(logits.detach(), labels)
        self._images += len(labels)

    def next_step(self) -> None:
        """The step is complete."""
        self._steps += 1

    def read(self, world: World, steps_done: int) -> Score:
        """Sum over ranks, read them on the host (the one host read of a period), and reset.

        Raises:
            NotFinite: on all ranks; names the step.
        """
        losses = world.sum_(self._losses[: self._steps] / world.size).tolist()
        correct1, correct5 = world.sum_(self._correct).tolist()
        bad = next((i for i, loss in enumerate(losses) if not math.isfinite(loss)), None)
        if bad is not None:
            raise NotFinite(
                f"step {steps_done - len(losses) + bad + 1}: the loss is {losses[bad]}; lower "
                "optim.lr_per_256 or lengthen schedule.warmup_epochs"
            )
        loss = math.fsum(losses) / max(1, self._steps)
        period = Score(self._images * world.size, loss, correct1, correct5)
        self._losses.zero_()
        self._correct.zero_()
        self._steps = self._images = 0
        return period


class EvalMetrics:
    """Loss, correct predictions and images of a validation, without padding."""

    def __init__(self, device: torch.device) -> None:
        self._loss = torch.zeros((), dtype=torch.float64, device=device)
        self._counts = torch.zeros(3, dtype=torch.int64, device=device)

    def add(self, logits: Tensor, labels: Tensor) -> None:
        """Add a batch; labels of padding are `stream.PADDING`."""
        self._loss += torch.nn.functional.cross_entropy(
            logits.double(), labels, ignore_index=PADDING, reduction="sum"
        )
        self._counts[:2] += correct(logits, labels)
        self._counts[2] += (labels != PADDING).sum()

    def read(self, world: World) -> Score:
        """Sum over ranks and hand over to the host.

        Raises:
            NotFinite: on all ranks.
        """
        loss = world.sum_(self._loss).item()
        if not math.isfinite(loss):
            raise NotFinite(f"validation: the loss is {loss}; the weights have diverged")
        correct1, correct5, images = world.sum_(self._counts).tolist()
        return Score(images, loss / images, correct1, correct5)


def mean_of_views(logits: Tensor, views: int) -> Tensor:
    """Average the logits [n * views, classes] of an image's views, which follow one another.

    The mean of the views' probabilities (Krizhevsky et al. 2012, 4.1), as its logarithm.
    """
    if views == 1:
        return logits
    each = logits.double().view(-1, views, logits.shape[1])
    return each.softmax(dim=2).mean(dim=1).log()


def correct(logits: Tensor, labels: Tensor) -> Tensor:
    """Count the top-1 and top-5 correct predictions: int64 [2]."""
    guesses = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hits = guesses == labels[:, None]  # padding equals no class
    return torch.stack([hits[:, 0].sum(), hits.sum()])


def memory_other_gib(world: World) -> float | None:
    """GPU memory outside torch: DALI's and NCCL's buffers, the CUDA context, other processes."""
    if not world.on_gpu:
        return None
    free, total = torch.cuda.mem_get_info(world.device)
    return (total - free - torch.cuda.memory_reserved(world.device)) / 2**30


def memory_peak_gib(world: World) -> float:
    """Peak memory of torch's tensors on the GPU; on a CPU, peak resident memory of the process."""
    if world.on_gpu:
        return torch.cuda.max_memory_allocated(world.device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
