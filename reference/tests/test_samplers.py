"""Schedule, samplers and noise, compared with known values."""

import numpy as np
import pytest
import torch

from mobilediffusion import noise
from mobilediffusion.samplers import Schedule, ddim, one_step


@pytest.mark.parametrize("t, value", [(0, 0.99915), (1, 0.99829603), (499, 0.27766965), (981, 0.00577550), (999, 0.00466010)])
def test_alpha_bar(t, value):
    assert Schedule().alpha_bar[t].item() == pytest.approx(value, abs=5e-9)


def test_timesteps():
    timesteps = Schedule().ddim_timesteps
    assert timesteps(50) == list(range(981, 0, -20))
    assert timesteps(10)[0] == 901 and timesteps(1) == [1] and len(timesteps(999)) == 999
    for n in (0, 1000):
        with pytest.raises(ValueError):
            timesteps(n)


class KnownNoise:
    """Stand-in for a network that knows x0 and predicts perfectly."""

    def __init__(self, x0, schedule, kind):
        self.x0, self.schedule = x0, schedule
        self.config = type("Config", (), {"prediction_type": kind})

    def __call__(self, x, t, text):
        a, s = self.schedule.coefficients(t, x)
        x0 = self.x0.repeat(len(x) // len(self.x0), 1, 1, 1)
        eps = (x - a * x0) / s
        return {"epsilon": eps, "v_prediction": a * eps - s * x0, "sample": x0}[self.config.prediction_type]


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_samplers_reach_what_the_network_knows(kind):
    schedule, x0 = Schedule(), torch.randn(2, 8, 4, 4, dtype=torch.float64)
    unet, start, text = KnownNoise(x0, schedule, kind), torch.randn_like(x0), torch.zeros(2, 1, 1)
    for steps in (1, 4):
        assert torch.allclose(one_step(unet, schedule, start, text, steps), x0, atol=1e-6)
    # DDIM ends at alpha_bar[0], where a little noise is left.
    end = ddim(unet, schedule, start, text, text, steps=10, guidance=3.0)
    assert (end - x0).abs().max() < 0.2


def test_one_step_timesteps():
    timesteps = Schedule().one_step_timesteps
    assert [timesteps(n) for n in (1, 2, 4)] == [[999], [999, 499], [999, 749, 499, 249]]
    for n in (0, 5):
        with pytest.raises(ValueError):
            timesteps(n)


def test_ddim_draws_fresh_noise_after_every_step():
    schedule, x0, asked = Schedule(), torch.randn(1, 8, 4, 4, dtype=torch.float64), []

    def fresh(step, like):
        asked.append(step)
        return torch.full_like(like, 0.1 * step)

    unet, text = KnownNoise(x0, schedule, "epsilon"), torch.zeros(1, 1, 1)
    plain, noisy = (ddim(unet, schedule, torch.ones_like(x0), text, text, 5, 1.0, eta, fresh) for eta in (0.0, 1.0))
    assert asked == [1, 2, 3, 4, 5] and not torch.allclose(plain, noisy, atol=1e-3)


def test_philox_known_answer():
    words = noise.philox4x32(([0], [0], [0], [0]), (0, 0))[0]
    assert [f"{int(w):08x}" for w in words] == ["6627e8d5", "e169c58d", "bc57ac4c", "9b00dbd8"]
    ones = [0xFFFFFFFF]
    words = noise.philox4x32((ones, ones, ones, ones), (0xFFFFFFFF, 0xFFFFFFFF))[0]
    assert [f"{int(w):08x}" for w in words] == ["408f276d", "41c83b0e", "a20bc7c6", "6d5451fd"]


def test_normal_moments_and_layout():
    values = noise.normal(5, 200_001)
    assert abs(values.mean()) < 0.01 and abs(values.std() - 1) < 0.01
    latent = noise.latent_noise(5, 4, 6)
    assert np.abs(noise.normal(5, 1000) - noise.normal(5, 1000, stream=1)).min() > 0
    assert latent.shape == (8, 4, 6) and latent[3, 1, 2] == np.float32(values[(1 * 6 + 2) * 8 + 3])
