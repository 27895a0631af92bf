"""A small image-text dual encoder, trained on the training split's real pictures.

Pictures and captions are embedded on the unit sphere of 32 dimensions, few enough
that the covariance of about a hundred pictures has full rank. The encoder is used
for measuring, so it is never trained on generated or held-out pictures.
"""

import torch
import torch.nn.functional as F
from torch import nn

from mobilediffusion.tokenizer import EOS, ClipTokenizer
from training.common import Pictures, Run, averaged, follow, frozen, load_checkpoint, set_rate

DIM, SIDE, BATCH = 32, 64, 64  # embedding, picture side in pixels (larger ones are scaled), concepts per batch
TEMPERATURE = 0.07


class DualEncoder(nn.Module):
    """Dual encoder: pictures [n, 3, h, w] in -1..1 and token ids [n, 77] -> unit vectors [n, 32]."""

    def __init__(self, vocabulary: int = 49408, width: int = 24):
        super().__init__()
        widths = [3, width, 2 * width, 4 * width, 4 * width]
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, stride=2, padding=1, bias=False) for i, o in zip(widths, widths[1:]))
        self.norms = nn.ModuleList(nn.BatchNorm2d(o) for o in widths[1:])
        self.image_head = nn.Linear(2 * widths[-1], DIM)
        self.words = nn.Embedding(vocabulary, DIM)
        self.text_head = nn.Sequential(nn.Linear(DIM, 4 * DIM), nn.GELU(), nn.Linear(4 * DIM, DIM))

    def image(self, x):
        if x.shape[-1] != SIDE:
            x = F.interpolate(x, size=(SIDE, SIDE), mode="area")
        for conv, norm in zip(self.convs, self.norms):
            x = F.relu(norm(conv(x)))
        return F.normalize(self.image_head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], dim=1)), dim=1)

    def text(self, ids):
        """Embed captions: a small network on the mean of the tokens' vectors, without marks and padding."""
        kept = (ids < EOS - 1).unsqueeze(-1).float()
        mean = (self.words(ids) * kept).sum(1) / kept.sum(1).clamp(min=1)
        return F.normalize(mean + self.text_head(mean), dim=1)


def augmented(x):
    """Augment pictures: shift, rotate, scale, mirror, change the light, and blur half of them."""
    n = len(x)
    draw = lambda low, high: torch.empty(n, device=x.device).uniform_(low, high)
    angle, scale, mirror = draw(-0.25, 0.25), draw(0.85, 1.2), torch.sign(draw(-1, 1))
    rows = [scale * angle.cos() * mirror, -scale * angle.sin(), draw(-0.15, 0.15)], [scale * angle.sin() * mirror, scale * angle.cos(), draw(-0.15, 0.15)]
    affine = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
    grid = F.affine_grid(affine, list(x.shape), align_corners=False)
    x = F.grid_sample(x, grid, padding_mode="border", align_corners=False)
    blurred = F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    x = torch.where(draw(0, 1)[:, None, None, None] < 0.5, x, blurred)
    return x * draw(0.8, 1.2)[:, None, None, None] + draw(-0.15, 0.15)[:, None, None, None]


def load(folder, device="cpu") -> DualEncoder:
    dual = DualEncoder()
    dual.load_state_dict(load_checkpoint(folder)["average"])
    return frozen(dual.to(device))


def batch_of_concepts(data: Pictures, by_concept: dict, ids: list):
    """Draw pictures and captions of different concepts, so that every other caption is wrong for a picture."""
    concepts = list(by_concept)
    chosen = [concepts[i] for i in torch.randperm(len(concepts))[:BATCH].tolist()]
    index = [by_concept[c][torch.randint(len(by_concept[c]), ())] for c in chosen]
    texts = torch.stack([ids[i][torch.randint(len(ids[i]), ())] for i in index])
    return augmented(data.batch(torch.tensor(index, device=data.pixels.device))), texts


def train(data_folder, out, minutes: float, steps: int, device: str) -> DualEncoder:
    """Train with the symmetric cross-entropy between the pictures and captions of a batch. Resumes like every stage."""
    data, tokenizer = Pictures(data_folder, device), ClipTokenizer()
    ids = [tokenizer(captions).to(device) for captions in data.captions]
    by_concept = {}
    for i, concept in enumerate(data.concept.tolist()):
        by_concept.setdefault(concept, []).append(i)
    dual = DualEncoder().to(device)
    average = averaged(dual)
    optimizer = torch.optim.AdamW(dual.parameters(), lr=2e-3, weight_decay=0.02)
    state = dict(dual=dual, average=average, optimizer=optimizer)
    run = Run(out, minutes, steps, ["loss", "accuracy"])
    run.resume(**state)
    while run.progress < 1:
        set_rate(optimizer, run.cosine(2e-3, 2e-5))
        pictures, texts = batch_of_concepts(data, by_concept, ids)
        similarity = dual.image(pictures) @ dual.text(texts).T / TEMPERATURE
        target = torch.arange(len(similarity), device=device)
        loss = (F.cross_entropy(similarity, target) + F.cross_entropy(similarity.T, target)) / 2
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        follow(average, dual, 0.99)
        for mine, theirs in zip(average.buffers(), dual.buffers()):  # the norms' statistics are running averages already
            mine.copy_(theirs)
        run.log(loss=loss, accuracy=(similarity.argmax(1) == target).float().mean())
        if run.step % 250 == 0:
            run.save(**state)
    run.save(**state)
    return frozen(dual)
