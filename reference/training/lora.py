"""Low-rank adaptation (LoRA) of the attention projections, as parametrisations that can be merged into the weights."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

PROJECTIONS = ("to_q", "to_k", "to_v", "to_kv", "to_out.0")


class LowRank(nn.Module):
    """Parametrisation W + B A with A [rank, in] and B [out, rank]; B starts at zero."""

    def __init__(self, weight, rank: int):
        super().__init__()
        self.lora_A = nn.Parameter(torch.empty(rank, weight.shape[1], device=weight.device))
        self.lora_B = nn.Parameter(torch.zeros(weight.shape[0], rank, device=weight.device))
        nn.init.kaiming_uniform_(self.lora_A, a=5**0.5)

    def forward(self, weight):
        return weight + self.lora_B @ self.lora_A


def attach(unet: nn.Module, rank: int) -> None:
    """Freeze everything and train low-rank additions to every attention projection."""
    unet.requires_grad_(False)
    for name, module in list(unet.named_modules()):
        if isinstance(module, nn.Linear) and name.endswith(PROJECTIONS):
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, rank))
            module.parametrizations.weight.original.requires_grad_(False)


def merged(unet: nn.Module) -> nn.Module:
    """Return a copy with the additions merged into the weights, under the plain names."""
    unet = copy.deepcopy(unet)
    for module in unet.modules():
        if parametrize.is_parametrized(module, "weight"):
            parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    return unet
