"""Write tests/data/tokenizer.json: texts and the 77 ids that transformers' CLIPTokenizer gives each of them.

`python reference/tokenizer_cases.py [OUT]`, with the packages of requirements-parity.txt. The texts are built here from
a fixed seed: prompts, contractions, scripts, emoji, numbers, white space, control characters, unnormalised accents,
random strings, very long texts and the empty text. None contains a mark written out (`<|endoftext|>`): there the
runtime differs on purpose, since a prompt must not end itself.
"""

import json
import random
import sys
import warnings
from pathlib import Path

from mobilediffusion.tokenizer import DEFAULT_PATH

DEFAULT_OUT = Path(__file__).resolve().parents[1] / "tests" / "data" / "tokenizer.json"
LENGTH = 77

SUBJECTS = ("a photo of a cat", "an astronaut riding a horse", "two red apples", "the Eiffel Tower at night", "portrait of an old man")
STYLES = ("oil painting", "8k, ultra-detailed", "in the style of Hokusai", "35mm film", "(masterpiece:1.2), best quality", "low-poly 3D")
CONTRACTIONS = ("it's", "don't", "we're", "I've", "I'm", "you'll", "he'd", "rock'n'roll", "o'clock", "'tis", "IT'S", "it’s", "dogs' toys")
SCRIPTS = (
    "Ein Fuß im Schnee, schön und größer", "Où est l'été à Noël ?", "El niño comió piñas ¡sí!", "Łódź żółć gęślą jaźń",
    "Ελληνικά γράμματα και ΤΕΛΟΣ", "Привет, красивый мир", "שלום עולם", "مرحبا بالعالم", "नमस्ते दुनिया", "สวัสดีชาวโลก",
    "一只可爱的猫坐在窗台上", "富士山と桜、夕方", "한국의 전통 가옥", "Tiếng Việt có dấu", "ქართული ენა", "Հայաստան", "አማርኛ",
    "𝔉𝔯𝔞𝔨𝔱𝔲𝔯 𝕕𝕠𝕦𝕓𝕝𝕖", "ＦＵＬＬ ｗｉｄｔｈ", "ﬁne ﬂow ligatures", "İstanbul ıssız ISPARTA", "ẞ ß ſ K Å", "ǅ ǆ Ǆ", "ΑΣ ας ΌΣΟΣ",
)
EMOJI = (
    "😀", "a cat 🐱 and a dog 🐶", "👨‍👩‍👧‍👦 family", "👍🏽 thumbs", "🏳️‍🌈 flag", "🇩🇪🇯🇵", "❤️ heart ❤ heart", "☃☀☂", "1️⃣2️⃣", "🫠🪿🫎", "©®™",
)
NUMBERS = ("1", "12", "2024", "3.14159", "1,000,000", "50%", "1/2", "½ ¾", "Ⅳ ⅻ", "٣٤٥", "①②", "x²+y²=z²", "0xDEADBEEF", "1e-5", "16:9")
PUNCTUATION = (
    "!", "!!!", "...", "…", "a-b", "a_b", "a--b", "(a)", "[b]", "{c}", "<d>", "a&b", "&amp;", "#tag", "@name", "$5", "a*b", "~^`", "\\", "\"quoted\"",
    "“quoted”", "«quoted»", "—–-", "a;b:c", "?!?", "https://example.org/a?b=c&d=e", "user@example.org", "C++", "C#", ":-)", "</w>", "a</w>b", "<b>bold</b>",
)
SPACES = (
    " ", "   ", "\t", "\n", " a", "a ", "  a  b  ", "a\tb", "a\nb", "a\r\nb", "a\u00a0b", "a\u2003b", "a\u3000b", "a\u200bb", "a\u2028b", "a\u0085b",
    "a\ufeffb", "a\u00adb", "\u202eabc",
)
CONTROLS = tuple(f"a{chr(code)}b" for code in [*range(0, 32), 127, 128, 0x9F, 0xFFFD, 0xFFFF, 0xE000, 0x10FFFF])
ACCENTS = ("e\u0301", "é", "A\u030a", "Å", "o\u0308\u0304", "n\u0303", "\u0301", "a\u0301\u0301\u0301", "각", "각", "\u1e9b\u0323", "ﬃ")
# Ranges of the characters of random strings.
RANGES = ((32, 126), (0xA0, 0x24F), (0x370, 0x3FF), (0x400, 0x4FF), (0x4E00, 0x4FFF), (0x1F300, 0x1F64F), (0x2000, 0x206F), (0x20, 0xD7FF))


def texts() -> list[str]:
    """Return all texts, without repetitions."""
    rng = random.Random(0)
    found = ["", *SUBJECTS, *STYLES, *CONTRACTIONS, *SCRIPTS, *EMOJI, *NUMBERS, *PUNCTUATION, *SPACES, *CONTROLS, *ACCENTS]
    found += [f"{subject}, {style}" for subject in SUBJECTS for style in STYLES]
    found += [f"{text.upper()} {rng.choice(EMOJI)}" for text in (*SUBJECTS, *SCRIPTS)]
    found += [f"{a}{b}" for a, b in zip(CONTRACTIONS, PUNCTUATION)]
    for low, high in RANGES:
        for length in (1, 2, 5, 12, 30) * 7:
            found.append("".join(chr(rng.randint(low, high)) for _ in range(length)))
    for count in (74, 75, 76, 77, 78):  # lengths around the one at which a text is cut
        found.append(" ".join(["cat"] * count))
    found += ["a" * 5_000, "ab " * 2_000, "🐱" * 300, "word " * 74 + "unbelievable", " ".join(SCRIPTS), "é" * 500, "'s" * 100, "1" * 200]
    return list(dict.fromkeys(found))


def reference():
    """Return transformers' tokenizer with the published vocabulary and merges."""
    from transformers import CLIPTokenizer

    model = json.loads(DEFAULT_PATH.read_text())["model"]
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in model["merges"]]
    return CLIPTokenizer(vocab=model["vocab"], merges=merges, model_max_length=LENGTH)


def main() -> None:
    out = Path(sys.argv[1]) if len(sys.argv) > 1 else DEFAULT_OUT
    warnings.filterwarnings("ignore")
    cases, tokenizer = texts(), reference()
    ids = [tokenizer(text, padding="max_length", truncation=True, max_length=LENGTH)["input_ids"] for text in cases]
    lines = (json.dumps({"text": text, "ids": i}, separators=(",", ":")) for text, i in zip(cases, ids))
    out.write_text("[\n" + ",\n".join(lines) + "\n]\n")
    print(f"{out}: {len(cases)} texts")


if __name__ == "__main__":
    main()
