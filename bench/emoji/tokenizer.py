"""The tokenizer of the miniature Stable Diffusion: byte-pair encoding in CLIPTokenizer's format."""

from __future__ import annotations

import string
from collections.abc import Iterable
from typing import Any

BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def train_tokenizer(captions: Iterable[str], *, size: int, length: int) -> Any:
    """Learn merges from `captions` and return a transformers CLIPTokenizer of at most `size` tokens.

    Every printable ASCII character is in the alphabet, so no caption holds an unknown token; the
    end token has the highest id, as in CLIP.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    blank = CLIPTokenizer().backend_tokenizer
    learner.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    learner.pre_tokenizer = pre_tokenizers.Sequence([blank.pre_tokenizer])
    letters = [c for c in string.printable if not c.isspace() and not c.isupper()]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        min_frequency=2,
        end_of_word_suffix="</w>",
        show_progress=False,
        special_tokens=[c + "</w>" for c in letters],  # fixes the order in which ties are broken
    )
    learner.train_from_iterator(sorted(captions), trainer)
    merges = _merges(learner.to_str())
    alphabet = letters + [c + "</w>" for c in letters]
    merges = _closed(merges, set(alphabet))[: size - len(alphabet) - 2]
    tokens = alphabet + ["".join(m) for m in merges]
    vocabulary = {t: i for i, t in enumerate(dict.fromkeys([*tokens, BOS, EOS]))}
    return CLIPTokenizer(
        vocab=vocabulary, merges=merges, model_max_length=length, pad_token=EOS, unk_token=EOS
    )


def _merges(state: str) -> list[tuple[str, str]]:
    import json

    pairs = json.loads(state)["model"]["merges"]
    return [(left, right) for left, right in (p.split(" ") if isinstance(p, str) else p for p in pairs)]


def _closed(merges: list[tuple[str, str]], known: set[str]) -> list[tuple[str, str]]:
    """Keep the merges whose two parts are in the alphabet or made by an earlier merge."""
    kept = []
    for left, right in merges:
        if left in known and right in known:
            known.add(left + right)
            kept.append((left, right))
    return kept


def encode(tokenizer: Any, captions: list[str]) -> Any:
    """Token ids as the Stable Diffusion pipeline makes them: [N,L] int64, padded, truncated."""
    return tokenizer(
        captions,
        padding="max_length",
        max_length=tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids
