"""Stage `words`: words that occur in no caption get the meaning of a known thing.

A frozen sentence encoder finds the nearest name of a known thing for every whole
word of CLIP's vocabulary that training never saw. If it is near enough, the
word's row of the token table is fitted so that the text encoder gives the word
the embedding of the name. Nothing else changes: captions of known words are
encoded as before.
"""

import json

import torch
import torch.nn.functional as F

from mobilediffusion.tokenizer import BOS, ClipTokenizer

from . import diffusion
from .common import Pictures, Run, frozen, set_rate
from .minilm import MiniLm

NEAR = 0.6  # cosine from which two texts count as names of the same thing
SHORTEST = 3  # letters of a word
TEMPLATES = ("{}", "a picture of a {}")


def known_names(options) -> list[list[str]]:
    """Return the names of every known thing, those of fewest words first."""
    concepts = Pictures(options.data, "cpu").concept.tolist()
    names = json.loads((options.data / "names.json").read_text())
    return [sorted(names[c], key=lambda n: (n.count(" "), len(n))) for c in sorted(set(concepts))]


def unseen_words(tokenizer: ClipTokenizer, captions: list[list[str]]) -> dict[str, int]:
    """Return the whole words of the vocabulary that occur in no caption, with their tokens."""
    seen = {i for texts in captions for text in texts for i in tokenizer.encode(text)}
    words = {t.removesuffix("</w>"): i for t, i in tokenizer.tokenizer.get_vocab().items() if t.endswith("</w>")}
    return {w: i for w, i in words.items() if i not in seen and len(w) >= SHORTEST and w.isascii() and w.isalpha()}


def pairs_of(options, tokenizer: ClipTokenizer) -> list[tuple[str, int, str]]:
    """Return (word, token, shortest name of the nearest thing) for every word that is near enough."""
    words, names = unseen_words(tokenizer, Pictures(options.data, "cpu").captions), known_names(options)
    flat = [(name, group[0]) for group in names for name in group]
    teacher = MiniLm(options.teacher)
    nearness, index = (teacher(list(words)) @ teacher([name for name, _ in flat]).T).max(dim=1)
    return [
        (word, token, flat[i][1])
        for (word, token), near, i in zip(words.items(), nearness.tolist(), index.tolist())
        if near >= NEAR
    ]


def train(options) -> None:
    if options.teacher is None:
        raise ValueError("the stage words needs --teacher: the folder of the sentence encoder")
    stage, device, tokenizer = options.stage, options.device, ClipTokenizer()
    text = diffusion.load_text(options.out / "base", device)
    pairs = pairs_of(options, tokenizer)
    print(f"{len(pairs)} words are near a known thing: " + ", ".join(f"{w} = {n}" for w, _, n in pairs[:8]), flush=True)
    table = text.text_model.embeddings.token_embedding
    tokens = torch.tensor([token for _, token, _ in pairs], device=device)
    # A word starts as the mean of the name's words. If the name is a single word, that is the answer already.
    said = [[i for i in tokenizer.encode(name) if i < BOS] for *_, name in pairs]
    rows = torch.nn.Parameter(torch.stack([table.weight[ids].detach().mean(0) for ids in said]))
    inputs = [tokenizer([t.format(word) for word, *_ in pairs]).to(device) for t in TEMPLATES]
    with torch.no_grad():
        targets = [text(tokenizer([t.format(name) for *_, name in pairs]).to(device)) for t in TEMPLATES]
    optimizer = torch.optim.Adam([rows], lr=stage.rate[0])
    run = Run(options.out / "words", stage.minutes, stage.steps, ["loss", "rate"])
    while run.progress < 1:
        rate = run.cosine(*stage.rate, warmup=1)
        set_rate(optimizer, rate)
        index = torch.randint(len(pairs), (stage.batch,), device=device)
        which = run.step % len(TEMPLATES)
        weight = table.weight.detach().index_put((tokens,), rows)
        hidden = torch.func.functional_call(text, {"text_model.embeddings.token_embedding.weight": weight}, inputs[which][index])
        loss = F.mse_loss(hidden, targets[which][index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        run.log(loss=loss, rate=rate)
    with torch.no_grad():
        table.weight[tokens] = rows
    run.save(text_ema=frozen(text), text_config=text.config.to_dict())
