"""Retrieval among captions, Fréchet distance, peak signal-to-noise ratio."""

import torch

CANDIDATES = 100


def square_root(matrix):
    """Return the symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.clamp(min=0).sqrt()) @ vectors.T


def frechet(a, b) -> float:
    """Return the Fréchet distance of the normal distributions with the moments of a [n, d] and b [m, d]."""
    a, b = a.double(), b.double()
    mean = (a.mean(0) - b.mean(0)).square().sum()
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = square_root(cov_a)
    return (mean + cov_a.trace() + cov_b.trace() - 2 * square_root(root @ cov_b @ root).trace()).item()


def retrieval(images, texts, concepts, all_texts, all_concepts, seed: int = 0) -> dict[int, float]:
    """Return the shares of pictures whose own caption ranks first, and among the first 10, of 100 by similarity.

    images and texts [n, d] are pairs of the concepts `concepts` [n]. The 99 other captions are drawn from `all_texts`
    [m, d] for every picture anew, each of another concept.
    """
    generator = torch.Generator().manual_seed(seed)
    others = {c: torch.nonzero(all_concepts == c).flatten() for c in all_concepts.unique().tolist()}
    ranks = []
    for image, text, concept in zip(images, texts, concepts.tolist()):
        names = [c for c in others if c != concept]
        if len(names) < CANDIDATES - 1:
            raise ValueError(f"retrieval among {CANDIDATES} captions needs as many concepts, not {len(names) + 1}")
        picked = [names[i] for i in torch.randperm(len(names), generator=generator)[: CANDIDATES - 1].tolist()]
        rows = [others[c][torch.randint(len(others[c]), (), generator=generator)] for c in picked]
        ranks.append((all_texts[torch.stack(rows)] @ image >= text @ image).sum())
    ranks = torch.stack(ranks)
    return {k: (ranks < k).float().mean().item() for k in (1, 10)}


def psnr(a, b) -> float:
    """Return the peak signal-to-noise ratio of pictures in 0..1, in dB."""
    return -10 * torch.log10((a - b).square().mean()).item()
