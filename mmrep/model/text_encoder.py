"""The text tower, which is open_clip's transformer, and CLIP's tokenizer."""

import hashlib
import json
import re
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from open_clip.model import CLIPTextCfg, _build_text_tower
from open_clip.tokenizer import SimpleTokenizer
from open_clip.transformer import text_global_pool
from torch import Tensor, nn

from mmrep.config.checks import ConfigError
from mmrep.config.model import TextConfig
from mmrep.model.seeding import seeded

KNOWN_IDS = 65_536
"""Number of words and texts whose ids are remembered."""
BUCKET = 8
"""Batches are cut to multiples of this length, so that torch.compile sees few lengths."""


def text_fields(config: TextConfig) -> tuple[dict[str, Any], bool]:
    """Return a tower's fields as open_clip's `text_cfg`, and whether its activation is QuickGELU."""
    fields = {**config.args}
    quick_gelu = bool(fields.pop("quick_gelu", False))
    for name in ("context_length", "vocab_size", "width", "heads", "layers"):
        if getattr(config, name) is not None:
            fields[name] = getattr(config, name)
    return fields, quick_gelu


class TextEncoder(nn.Module):
    """The text tower: token ids to embeddings.

    open_clip's own forward pass fails on texts shorter than the context. This one cuts the position embedding and the
    causal mask to the length of the texts. If later tokens can't influence the pooled one, the result is the same.

    Args:
        config: the tower, with width, heads and layers.
        embed_dim: width of the embedding.
        seed: seed of the initial values.

    Attributes:
        cuttable: texts may be cut to the longest of the batch.

    Raises:
        ConfigError: a field that open_clip's text config does not have.
    """

    def __init__(self, config: TextConfig, embed_dim: int, seed: int) -> None:
        super().__init__()
        fields, quick_gelu = text_fields(config)
        try:
            cfg = CLIPTextCfg(**fields)
        except TypeError as error:
            raise ConfigError(f"model.text.args: {error}") from error
        if cfg.hf_model_name:
            raise ConfigError(
                f"model.text: {cfg.hf_model_name!r} is a transformers text tower, which is not supported yet"
            )
        with seeded(seed, "text"):
            self.tower = _build_text_tower(embed_dim, cfg, quick_gelu)
        self.context_length: int = self.tower.context_length
        self.cuttable = (
            self.tower.cls_emb is None
            and self.tower.pool_type in ("argmax", "eos", "first")
            and (self.tower.attn_mask is not None or self.tower.use_pad_mask)
        )

    def forward(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch embed"]:
        """Return embeddings, not normalised to unit length; see `features` for what is refused."""
        return self.project(self.features(tokens))

    def project(self, features: Float[Tensor, "batch width"]) -> Float[Tensor, "batch embed"]:
        """Apply the tower's projection to what `features` returns."""
        projection = self.tower.text_projection
        if not self.cuttable or projection is None:
            return features
        return projection(features) if isinstance(projection, nn.Linear) else features @ projection

    def features(self, tokens: Int64[Tensor, "batch length"]) -> Float[Tensor, "batch width"]:
        """Return the pooled text before the projection, or behind it on a tower whose texts can't be cut.

        Raises:
            ValueError: texts longer than the context, or shorter texts on a tower that can't cut them.
        """
        length = tokens.shape[1]
        if length > self.context_length or (length < self.context_length and not self.cuttable):
            expected = f"at most {self.context_length}" if self.cuttable else f"{self.context_length}"
            raise ValueError(f"expected texts of {expected} tokens, got {length}")
        tower = self.tower
        if not self.cuttable:
            return tower(tokens)
        x = tower.token_embedding(tokens) + tower.positional_embedding[:length]
        mask = None if tower.attn_mask is None else tower.attn_mask[:length, :length]
        if tower.use_pad_mask:
            mask = tower._build_additive_mask(tokens, length, x.dtype)
        x = tower.ln_final(tower.transformer(x, attn_mask=mask))
        return text_global_pool(x, tokens, tower.pool_type, eos_token_id=tower.eos_id)


@cache
def _vocabulary_files() -> dict[str, str]:
    """Return vocab.json and merges.txt of CLIP's byte-pair encoding. They do not depend on the context length."""
    bpe = SimpleTokenizer()
    merges = [" ".join(pair) for pair, _ in sorted(bpe.bpe_ranks.items(), key=lambda item: item[1])]
    return {
        "vocab.json": json.dumps(bpe.encoder, ensure_ascii=False),
        "merges.txt": "#version: 0.2\n" + "\n".join(merges) + "\n",
    }


class ClipTokenizer:
    """CLIP's byte-pair encoding, as open_clip ships it.

    Args:
        context_length: longest text in tokens, start and end included. A longer text is cut and keeps its end token.
        cut: `batch` and `stack` cut to the longest text, rounded up to a multiple of 8.
    """

    def __init__(self, context_length: int, cut: bool = True) -> None:
        self.context_length = context_length
        self.cut = cut
        self._bpe = SimpleTokenizer(context_length=context_length)
        special = "|".join(map(re.escape, (self._bpe.decoder[i] for i in self._bpe.all_special_ids)))
        self._words = re.compile(rf"{special}|'s|'t|'re|'ve|'m|'ll|'d|[a-z]+|[0-9]|[^\sa-z0-9]+")
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: str | list[str]) -> Int64[Tensor, "batch context"]:
        """Return token ids padded to the context length, as open_clip's tokenizer does."""
        return self._bpe(texts)

    def batch(self, texts: list[str]) -> tuple[Int64[Tensor, "batch length"], Int64[Tensor, " batch"]]:
        """Return token ids, cut to the longest text if the text tower allows it, and the lengths of the texts."""
        rows = [self.encode(text) for text in texts]
        return self.stack(rows), torch.tensor([len(row) for row in rows])

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text with start and end, at most as many as the context has."""
        ids = [self._bpe.sot_token_id]
        if text.isascii() and text.isprintable() and "&" not in text:
            # Such a text has nothing for ftfy to mend and no HTML to unescape, which take most of open_clip's time; and
            # a word has the same ids wherever it stands.
            for word in self._words.findall(text.lower()):
                ids += self._known.get(word) or self._keep(word, self._merged(word))
        else:
            ids += self._known.get(text) or self._keep(text, self._bpe.encode(text))
        ids.append(self._bpe.eot_token_id)
        return ids if len(ids) <= self.context_length else [*ids[: self.context_length - 1], ids[-1]]

    def _merged(self, word: str) -> list[int]:
        """Return the ids of a word of printable ASCII, whose bytes are its letters."""
        return [self._bpe.encoder[part] for part in self._bpe.bpe(word).split(" ")]

    def _keep(self, text: str, ids: list[int]) -> list[int]:
        """Remember the ids of a word or of a whole text, and return them. Past KNOWN_IDS entries, start anew."""
        if len(self._known) >= KNOWN_IDS:
            self._known.clear()
        self._known[text] = ids
        return ids

    def stack(self, rows: Sequence[Sequence[int]], multiple: int = BUCKET) -> Int64[Tensor, "batch length"]:
        """Stack the token ids of texts, padded with zeros.

        Args:
            rows: token ids from `encode`.
            multiple: the width is that of the longest text, rounded up to a multiple of this. Without `cut` it is the
                context length.
        """
        width = self.context_length
        if self.cut:
            width = min(-(-max(map(len, rows)) // multiple) * multiple, width)
        tokens = np.zeros((len(rows), width), dtype=np.int64)
        for i, row in enumerate(rows):
            tokens[i, : len(row)] = row
        return torch.from_numpy(tokens)

    def digest(self) -> str:
        """Return a digest that changes if any text would get other ids."""
        return self._digest

    @cached_property
    def _digest(self) -> str:
        state = hashlib.blake2b(json.dumps(sorted(self._bpe.encoder.items())).encode(), digest_size=16)
        state.update(f"{self.context_length}".encode())
        return state.hexdigest()

    def save(self, folder: str | Path) -> None:
        """Write vocab.json, merges.txt and tokenizer_config.json, from which transformers makes a CLIPTokenizer."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in _vocabulary_files().items():
            (folder / name).write_text(text, encoding="utf-8")
        config = {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.context_length,
            "bos_token": self._bpe.decoder[self._bpe.sot_token_id],
            **dict.fromkeys(("eos_token", "unk_token", "pad_token"), self._bpe.decoder[self._bpe.eot_token_id]),
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
