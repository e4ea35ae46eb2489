"""The CLIP tokenizer's short ways against open_clip's own."""

import numpy as np
import pytest
import torch

from mmrep.model import text_encoder
from mmrep.model.text_encoder import ClipTokenizer

PIECES = [
    *("a", "photo", "of", "don't", "I'LL", "they're", "'S", "''s", "it's'", "x'sun", "1st", "2024", "a_b", "...'re"),
    *("<start_of_text>", "<END_OF_TEXT>", "<<start_of_text>>", "<p>", "&amp;", "&lt;b&gt;", "AT&T", "&", "#", "~`^|"),
    *(
        "\t",
        "\n",
        "  ",
        "\x1b[0m",
        "\x07",
        "é",
        "caf\u00e9",
        "\ufb01",
        "\u201cq\u201d",
        "K",
        "ſ",
        "日本",
        "𝔘",
        "\u200b",
    ),
    *("antidisestablishmentarianism", "Zzyzx", "!", "?!", "(", ")", "-", "–", '"', "\\", "/", "@", "$5", "é's", ""),
]


def drawn_texts(count: int) -> list[str]:
    generator = np.random.default_rng(0)
    return [
        "".join(
            PIECES[piece] + " " * int(generator.integers(0, 2))
            for piece in generator.integers(0, len(PIECES), generator.integers(0, 24))
        )
        for _ in range(count)
    ]


@pytest.fixture(scope="module")
def tokenizer() -> ClipTokenizer:
    return ClipTokenizer(32)


def test_ids_are_open_clips(tokenizer: ClipTokenizer) -> None:
    texts = drawn_texts(1500)
    assert torch.equal(tokenizer.stack([tokenizer.encode(text) for text in texts], multiple=32), tokenizer(texts))
    endless = ClipTokenizer(1000)
    long = sum(len(endless.encode(text)) > 32 for text in texts[:100])
    assert 10 < long < 90, "some are cut to the context, some are not"


def test_plain_texts_take_the_short_way(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = ClipTokenizer(32)
    tokenizer.batch(["A photo of a cat.", "the dog's bowl"])
    monkeypatch.setattr(tokenizer._bpe, "encode", lambda text: pytest.fail(f"{text!r} was encoded again"))
    assert tokenizer.batch(["a cat. the dog's photo of  A BOWL."])[1].tolist() == [13]


def test_few_words_are_kept(tokenizer: ClipTokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "KNOWN_IDS", 8)
    forgetful = ClipTokenizer(32)
    for text in drawn_texts(50):
        assert forgetful.encode(text) == tokenizer.encode(text)
        assert len(forgetful._known) <= 8


def test_widths(tokenizer: ClipTokenizer) -> None:
    rows = [tokenizer.encode("a cat"), tokenizer.encode("a b c d e f g")]
    assert [len(row) for row in rows] == [4, 9]
    assert tokenizer.stack(rows, 1).shape == (2, 9)
    assert tokenizer.stack(rows).shape == (2, 16)
    assert tokenizer.stack([tokenizer.encode("a " * 40)], 1).shape == (1, 32)
    assert ClipTokenizer(32, cut=False).stack(rows, 1).shape == (2, 32)
