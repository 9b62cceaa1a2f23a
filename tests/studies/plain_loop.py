"""A plain training of ResNet-20 on CIFAR-10, as tutorials write it: what the harness is held to.

Pillow, torch's DataLoader, eager, bf16, torch's own SGD and MultiStepLR; of the harness only
the network, whose weights and outputs other tests hold against torchvision's.

    python tests/studies/plain_loop.py --train DIR --val DIR --seed 0
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from harness.config import Model
from harness.models import build

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
BATCH, STEPS, DROPS = 128, 4000, [2000, 3000]


def train(folder: str, val_folder: str, seed: int, workers: int) -> dict[str, Any]:
    """He et al. 2015, 4.2, with its 64k iterations and drops divided by 16."""
    torch.manual_seed(seed)
    began = time.monotonic()
    whole = [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    augment = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    train_set = ImageFolder(folder, v2.Compose([*augment, *whole]))
    loader = DataLoader(
        train_set, BATCH, shuffle=True, drop_last=True, num_workers=workers,
        persistent_workers=workers > 0,
    )  # fmt: skip
    net = build(Model(name="resnet20"), len(train_set.classes))
    net.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, DROPS)
    net.train()
    for step, (images, labels) in enumerate(_endless(loader)):
        if step == STEPS:
            break
        with torch.autocast("cpu", torch.bfloat16):
            logits = net(images.to(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"seed {seed}  step {step}/{STEPS}  loss {loss.item():.4f}", flush=True)
    val_set = ImageFolder(val_folder, v2.Compose(whole))
    net.eval()
    correct = 0
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        for images, labels in DataLoader(val_set, 250, num_workers=workers):
            correct += int((net(images).argmax(1) == labels).sum())
    return {"seed": seed, "top1_pct": 100 * correct / len(val_set),
            "images": len(val_set), "wall_s": time.monotonic() - began}  # fmt: skip


def _endless(loader: DataLoader[Any]) -> Iterator[Any]:
    return itertools.chain.from_iterable(itertools.repeat(loader))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--train", required=True)
    parser.add_argument("--val", required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--workers", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    print(json.dumps(train(given.train, given.val, given.seed, given.workers)))
