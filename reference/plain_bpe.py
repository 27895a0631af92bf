"""CLIP's byte-pair encoding in plain Python, as published. parity.py compares the tokenizers with it."""

import json
import unicodedata
from functools import cache

import regex

from mobilediffusion.tokenizer import BOS, DEFAULT_PATH, EOS

# Python's own \s matches the separators U+001C to U+001F; Unicode and the published files do not count them as space.
SPACE = regex.compile(r"\p{White_Space}+")
WORDS = regex.compile(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\p{White_Space}\p{L}\p{N}]+")


def letters() -> dict[int, str]:
    """Map each byte to a character: itself if it is printable, else the next one from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {byte: chr(byte) for byte in printable}
    for byte in range(256):
        if byte not in table:
            table[byte] = chr(0x100 + len(table) - len(printable))
    return table


class PlainBpe:
    """Encode a text to ids with both marks, cut and padded to `length`."""

    def __init__(self, length: int = 77):
        model = json.loads(DEFAULT_PATH.read_text())["model"]
        pairs = (tuple(merge.split(" ")) if isinstance(merge, str) else tuple(merge) for merge in model["merges"])
        self.length, self.vocabulary, self.letters = length, model["vocab"], letters()
        self.rank = {pair: rank for rank, pair in enumerate(pairs)}
        self.merged = cache(self.merge)

    def merge(self, word: str) -> list[int]:
        """Join the pair of the lowest rank at all its places, until no pair has a rank."""
        parts = [*word[:-1], word[-1] + "</w>"]
        while len(parts) > 1:
            best = min(zip(parts, parts[1:]), key=lambda pair: self.rank.get(pair, len(self.rank)))
            if best not in self.rank:
                break
            joined, i = [], 0
            while i < len(parts):
                pair = tuple(parts[i:i + 2]) == best
                joined.append("".join(best) if pair else parts[i])
                i += 2 if pair else 1
            parts = joined
        return [self.vocabulary[part] for part in parts]

    def encode(self, text: str) -> list[int]:
        # Letter by letter, because the published tokenizers do not lower a capital sigma to its final form.
        text = "".join(c.lower() for c in SPACE.sub(" ", unicodedata.normalize("NFC", text)))
        words = ("".join(self.letters[byte] for byte in word.encode()) for word in WORDS.findall(text))
        ids = [i for word in words for i in self.merged(word)][: self.length - 2]
        return [BOS, *ids] + [EOS] * (self.length - 1 - len(ids))
