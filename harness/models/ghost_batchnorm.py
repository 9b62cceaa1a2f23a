"""Ghost BN: batch normalization over groups of a batch (Hoffer et al. 2017).

Goyal et al. 2017, 3: the training loss depends on how many images BN normalizes together, so that
number (32) stays the same while the batch grows.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class GhostBatchNorm2d(nn.BatchNorm2d):
    """BN that trains on consecutive groups of `images`, each normalized by itself.

    Running statistics follow the first group only, as those of rank 0 count in a distributed job.
    Evaluation, parameters and buffers are nn.BatchNorm2d's.
    """

    def __init__(self, like: nn.BatchNorm2d, images: int) -> None:
        """Take over the parameters and buffers of `like`."""
        super().__init__(like.num_features, like.eps, like.momentum, device=like.weight.device)
        self.weight, self.bias = like.weight, like.bias
        self.running_mean, self.running_var = like.running_mean, like.running_var
        self.num_batches_tracked = like.num_batches_tracked
        self.images = images

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) -> the same shape; in training N is at most, or a multiple of, `images`."""
        if not self.training or len(x) <= self.images:
            return super().forward(x)
        if len(x) % self.images:
            raise ValueError(f"{len(x)} images are no multiple of {self.images}")
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # By group, a compiled graph would grow with the number of groups; in eager mode the fused
        # kernels are several times faster than the plain formula.
        if torch.compiler.is_compiling():
            return self._all_at_once(x)
        mean, var, momentum = self.running_mean, self.running_var, self.momentum or 0.0
        normalized = []
        for group in x.split(self.images):  # parts of a batch: views in any memory format
            y = F.batch_norm(group, mean, var, self.weight, self.bias, True, momentum, self.eps)
            normalized.append(y)
            mean = var = None
        return torch.cat(normalized)

    def _all_at_once(self, x: Tensor) -> Tensor:
        groups = x.unflatten(0, (-1, self.images)).float()  # (groups, images, C, H, W)
        var, mean = torch.var_mean(groups, dim=(1, 3, 4), keepdim=True, correction=0)
        assert self.running_mean is not None
        assert self.running_var is not None
        values = groups[0].numel() // self.num_features
        with torch.no_grad():  # the running variance is unbiased, as in torch
            self.running_mean.lerp_(mean[0].flatten(), self.momentum or 0.0)
            unbiased = var[0].flatten() * (values / (values - 1))
            self.running_var.lerp_(unbiased, self.momentum or 0.0)
        gamma, beta = (p.view(1, 1, -1, 1, 1) for p in (self.weight, self.bias))
        normalized: Tensor = (groups - mean) * torch.rsqrt(var + self.eps) * gamma + beta
        return normalized.to(x.dtype).flatten(0, 1)


def use_groups(network: nn.Module, images: int) -> None:
    """Replace every BN of a network by ghost BN on groups of `images`; weights and keys stay."""
    for name, child in network.named_children():
        if isinstance(child, nn.BatchNorm2d):
            setattr(network, name, GhostBatchNorm2d(child, images))
        else:
            use_groups(child, images)
