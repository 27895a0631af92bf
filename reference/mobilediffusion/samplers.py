"""Noise schedule and samplers: DDIM with guidance, and UFOGen with one to four steps."""

import torch

from .config import SchedulerConfig


class Schedule:
    """Noise schedule: alpha-bar of all training steps, in float64."""

    def __init__(self, config: SchedulerConfig = SchedulerConfig()):
        if config.beta_schedule != "scaled_linear":
            raise ValueError(f"beta_schedule {config.beta_schedule!r} is not supported")
        root = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.num_train_timesteps, dtype=torch.float64)
        self.steps = config.num_train_timesteps
        self.alpha_bar = torch.cumprod(1.0 - root**2, dim=0)
        self.a = self.alpha_bar.sqrt()  # weight of the picture
        self.s = (1.0 - self.alpha_bar).sqrt()  # weight of the noise

    def add_noise(self, x0, noise, t):
        """Return a_t x0 + s_t noise for x0 and noise [n, ...] at steps t [n]."""
        a, s = self.coefficients(t, x0)
        return a * x0 + s * noise

    def coefficients(self, t, like):
        """Return a_t and s_t for t [n], shaped to multiply `like` [n, ...]."""
        shape = (-1,) + (1,) * (like.dim() - 1)
        pick = lambda table: table.to(like.device)[t].to(like.dtype).view(shape)
        return pick(self.a), pick(self.s)

    def to_x0(self, prediction, x, t, prediction_type: str):
        """Convert a prediction at steps t [n] to the clean latent."""
        a, s = self.coefficients(t, x)
        if prediction_type == "epsilon":
            return (x - s * prediction) / a
        if prediction_type == "v_prediction":
            return a * x - s * prediction
        return prediction

    def ddim_timesteps(self, n: int) -> list[int]:
        """Return the n timesteps of DDIM: diffusers' `leading` spacing with offset 1."""
        if not 1 <= n < self.steps:
            raise ValueError(f"the number of steps must be 1 to {self.steps - 1}, not {n}")
        stride = self.steps // n
        return [stride * k + 1 for k in reversed(range(n))]

    def ddim_step(self, x0, eps, t: int, n: int, eta: float = 0.0, noise=None):
        """Return the latent at the step before t from x0 and eps at step t. `eta` is the share of fresh noise."""
        abar, previous = float(self.alpha_bar[t]), float(self.alpha_bar[max(t - self.steps // n, 0)])
        sigma = eta * ((1.0 - previous) / (1.0 - abar) * (1.0 - abar / previous)) ** 0.5
        x = previous**0.5 * x0 + (1.0 - previous - sigma**2) ** 0.5 * eps
        return x + sigma * noise if eta else x

    def one_step_timesteps(self, n: int) -> list[int]:
        """Return the n timesteps of UFOGen, evenly spaced from the last step down."""
        if not 1 <= n <= 4:
            raise ValueError(f"the number of steps must be 1 to 4, not {n}")
        return [self.steps - 1 - k * (self.steps // n) for k in range(n)]


def random_noise(step: int, like):
    """Draw fresh noise from PyTorch's generator. `step` counts from 1."""
    return torch.randn_like(like)


@torch.no_grad()
def ddim(unet, schedule: Schedule, noise, text, empty, steps: int, guidance: float, eta: float = 0.0, fresh=random_noise):
    """Sample by DDIM: noise [n, 8, h, w], text and empty [n, k, d] -> latent.

    The UNet's batch is [empty, text]; with guidance 1 the empty half is left out. `fresh(step, like)` returns the noise
    to add if eta > 0.
    """
    kind = unet.config.prediction_type
    z, n = noise, noise.shape[0]
    guided = guidance != 1.0
    context = torch.cat([empty, text]) if guided else text
    for k, t in enumerate(schedule.ddim_timesteps(steps)):
        batch_t = torch.full((context.shape[0],), t, device=z.device)
        x = torch.cat([z, z]) if guided else z
        prediction = unet(x, batch_t, context)
        if guided:
            without, with_text = prediction.chunk(2)
            prediction = without + guidance * (with_text - without)
        x0 = schedule.to_x0(prediction, z, batch_t[:n], kind)
        a, s = float(schedule.a[t]), float(schedule.s[t])
        eps = prediction if kind == "epsilon" else (z - a * x0) / s
        z = schedule.ddim_step(x0, eps, t, steps, eta, fresh(k + 1, z) if eta else None)
    return z


@torch.no_grad()
def one_step(unet, schedule: Schedule, noise, text, steps: int = 1, fresh=random_noise):
    """Sample by UFOGen: predict the clean latent at step T-1. With more steps, add fresh noise and predict again."""
    x = noise
    for k, t in enumerate(schedule.one_step_timesteps(steps)):
        t = torch.full((noise.shape[0],), t, device=noise.device)
        if k:
            x = schedule.add_noise(x, fresh(k, x), t)
        x = schedule.to_x0(unet(x, t, text), x, t, unet.config.prediction_type)
    return x
