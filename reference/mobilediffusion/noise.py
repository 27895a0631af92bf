"""The runtime's noise: Philox4x32-10 and Box-Muller, reproducible to the bit from a 64-bit seed."""

import numpy as np

M0, M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
W0, W1 = 0x9E3779B9, 0xBB67AE85
MASK = np.uint64(0xFFFFFFFF)


def philox4x32(counter, key, rounds: int = 10):
    """Compute Philox4x32-10.

    counter: four uint64 arrays [n] of 32-bit words; key: two ints. Returns words [n, 4] (uint64, 32 bits used).
    """
    c0, c1, c2, c3 = (np.asarray(c, dtype=np.uint64) for c in counter)
    k0, k1 = key
    for _ in range(rounds):
        p0, p1 = c0 * M0, c2 * M1
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & MASK,
            (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & MASK,
        )
        k0, k1 = (k0 + W0) & 0xFFFFFFFF, (k1 + W1) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1)


def normal(seed: int, count: int, stream: int = 0) -> np.ndarray:
    """Return the first `count` standard normal values of a seed, float64 [count].

    `stream` selects an independent sequence.
    """
    block = np.arange((count + 3) // 4, dtype=np.uint64)
    zero, streams = np.zeros_like(block), np.full_like(block, stream)
    words = philox4x32((block & MASK, block >> np.uint64(32), streams, zero), (seed & 0xFFFFFFFF, seed >> 32 & 0xFFFFFFFF))
    # Adding a half keeps u above 0, where the logarithm is infinite.
    u = (words.astype(np.float64) + 0.5) * 2.0**-32
    radius = np.sqrt(-2.0 * np.log(u[:, 0::2]))
    angle = 2.0 * np.pi * u[:, 1::2]
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=-1)  # [blocks, 2, 2]
    return pairs.reshape(-1)[:count]


def latent_noise(seed: int, height: int, width: int, channels: int = 8, stream: int = 0) -> np.ndarray:
    """Return noise [channels, h, w] (float32), whose values are drawn in the order of [h, w, channels].

    Stream 0 is the initial latent, stream k the noise that a sampler adds after its k-th step.
    """
    values = normal(seed, height * width * channels, stream).astype(np.float32)
    return np.ascontiguousarray(values.reshape(height, width, channels).transpose(2, 0, 1))
