"""CLIP's byte-pair tokenizer: text -> 77 token ids."""

from pathlib import Path

import torch
from tokenizers import Tokenizer

DEFAULT_PATH = Path(__file__).resolve().parents[2] / "model" / "data" / "clip" / "tokenizer.json"
BOS, EOS = 49406, 49407


class ClipTokenizer:
    """Tokenizer: begin and end marks around a text, cut or padded (with the end mark) to `length` tokens."""

    def __init__(self, path=DEFAULT_PATH, length: int = 77):
        self.length = length
        self.tokenizer = Tokenizer.from_file(str(path))
        self.tokenizer.no_truncation()
        self.tokenizer.no_padding()

    def encode(self, text: str) -> list[int]:
        ids = self.tokenizer.encode(text, add_special_tokens=False).ids
        ids = [i for i in ids if i not in (BOS, EOS)][: self.length - 2]
        return [BOS, *ids] + [EOS] * (self.length - 1 - len(ids))

    def __call__(self, texts: list[str]) -> torch.Tensor:
        """Encode texts to ids [n, length], int64."""
        return torch.tensor([self.encode(text) for text in texts])
