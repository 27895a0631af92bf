"""Discriminator of the VAE: hinge loss on patches, weighted by the ratio of gradients as in latent diffusion (LDM)."""

import torch
import torch.nn.functional as F
from torch import nn

JOINS = 0.5  # share of the run after which the discriminator takes part


def patch_discriminator(width: int = 32) -> nn.Sequential:
    """Build a network from pictures [n, 3, h, w] to one logit per patch of about 30 pixels, [n, 1, h/8, w/8]."""
    layers = [nn.Conv2d(3, width, 4, stride=2, padding=1), nn.LeakyReLU(0.2)]
    for i in range(2):
        layers += [
            nn.Conv2d(width << i, width << (i + 1), 4, stride=2, padding=1),
            nn.GroupNorm(8, width << (i + 1)),
            nn.LeakyReLU(0.2),
        ]
    return nn.Sequential(*layers, nn.Conv2d(width << 2, 1, 3, padding=1))


class PatchGan:
    """Discriminator with its optimiser. With weight 0 there is no discriminator, and calls do nothing."""

    def __init__(self, weight: float, device):
        self.weight = weight
        if weight:
            self.network = patch_discriminator().to(device)
            self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, betas=(0.5, 0.9))

    def state(self) -> dict:
        """Return the state to save in a checkpoint."""
        return {"gan": self.network, "gan_optimizer": self.optimizer} if self.weight else {}

    def idle(self, progress: float) -> bool:
        return not self.weight or progress < JOINS

    def generator_loss(self, reconstruction, output, last_weight, progress: float):
        """Return the decoder's weighted loss.

        The weight is the ratio of the gradients of `reconstruction` and of this loss at the decoder's last layer.
        """
        if self.idle(progress):
            return torch.zeros((), device=output.device)
        self.network.requires_grad_(False)
        loss = -self.network(output).mean()
        self.network.requires_grad_(True)
        norm = lambda value: torch.autograd.grad(value, last_weight, retain_graph=True)[0].norm()
        ratio = (norm(reconstruction) / (norm(loss) + 1e-4)).clamp(0, 1e4).detach()
        return self.weight * ratio * loss

    def step(self, real, fake, progress: float) -> None:
        """Train the discriminator for one step with the hinge loss."""
        if self.idle(progress):
            return
        loss = F.relu(1 - self.network(real)).mean() + F.relu(1 + self.network(fake)).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
