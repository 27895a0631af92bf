"""Metrics on cases whose answers are known."""

import pytest
import torch

from evaluation import dual
from evaluation.metrics import CANDIDATES, frechet, psnr, retrieval


def test_frechet_distance_of_shifted_and_scaled_normals():
    x = torch.randn(4000, 3, dtype=torch.float64) @ torch.tensor([[1.0, 0.3, 0.0], [0.0, 0.7, 0.2], [0.0, 0.0, 1.5]]).double()
    assert abs(frechet(x, x)) < 1e-9
    assert frechet(x, x + torch.tensor([3.0, 0.0, 4.0])) == pytest.approx(25.0)
    # Scaling by 2 doubles the root of the covariance, so the distance is the trace of the covariance.
    centred = x - x.mean(0)
    assert frechet(centred, 2 * centred) == pytest.approx(torch.cov(x.T).trace().item())


def test_retrieval_of_perfect_and_of_useless_embeddings():
    n = 2 * CANDIDATES
    vectors = torch.nn.functional.normalize(torch.randn(n, 64), dim=1)
    concepts = torch.arange(n)
    assert retrieval(vectors, vectors, concepts, vectors, concepts) == {1: 1.0, 10: 1.0}
    others = torch.nn.functional.normalize(torch.randn(n, 64), dim=1)
    chance = retrieval(others, vectors, concepts, vectors, concepts)
    assert chance[1] < 0.1 and 0.02 < chance[10] < 0.25
    # With equal embeddings nothing is found, because a tie is not a hit.
    same = torch.ones(n, 64)
    assert retrieval(same, same, concepts, same, concepts) == {1: 0.0, 10: 0.0}
    with pytest.raises(ValueError, match="100 captions"):
        retrieval(vectors, vectors, concepts, vectors[:50], concepts[:50])


def test_psnr():
    assert psnr(torch.zeros(4), torch.full((4,), 0.1)) == pytest.approx(20.0, abs=1e-4)


def test_dual_encoder_ignores_padding_and_picture_size():
    model = dual.DualEncoder(width=4).eval()
    short, long = torch.tensor([[49406, 7, 9, 49407]]), torch.tensor([[49406, 7, 9, 49407, 49407, 49407]])
    torch.testing.assert_close(model.text(short), model.text(long))
    pictures = torch.rand(2, 3, 128, 128)
    assert model.image(pictures).shape == (2, dual.DIM)
    torch.testing.assert_close(model.image(pictures).norm(dim=1), torch.ones(2))
    # Pictures of twice the size, scaled down, have the embeddings of the small ones.
    small = torch.nn.functional.avg_pool2d(pictures, 2)
    torch.testing.assert_close(model.image(pictures), model.image(small))


def test_augmentation_keeps_shape_and_changes_pictures():
    x = torch.rand(6, 3, 64, 64)
    y = dual.augmented(x)
    assert y.shape == x.shape and y.isfinite().all() and not torch.equal(x, y)
