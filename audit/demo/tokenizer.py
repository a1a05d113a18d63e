"""The demo's tokenizer: CLIP's byte-pair encoding, with a small vocabulary of its own captions."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import CLIPTokenizer

VOCABULARY = 3200
LENGTH = 32
"""Tokens of a caption with its start and end; longer captions are cut, as CLIP does at 77."""
START, END = "<|startoftext|>", "<|endoftext|>"
WORDS = Regex(r"'s|'t|'re|'ve|'m|'ll|'d|\p{L}+|\p{N}|[^\s\p{L}\p{N}]+")


def train(captions: pd.Series, out: Path) -> CLIPTokenizer:
    """Train on `captions` and save in the layout that `CLIPTokenizer.from_pretrained` reads."""
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(WORDS, "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2,
        end_of_word_suffix="</w>",
        initial_alphabet=alphabet,
        special_tokens=[],
        show_progress=False,
    )
    bpe.train_from_iterator(captions.tolist(), trainer)
    trained = json.loads(bpe.to_str())["model"]
    # Every byte needs an end-of-word form, or a single rare character at the end of a word is unknown.
    words = dict.fromkeys(
        [*alphabet, *(letter + "</w>" for letter in alphabet), *trained["vocab"], START, END]
    )
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [tuple(pair) for pair in trained["merges"]]
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=LENGTH)  # pyright: ignore[reportArgumentType]
    tokenizer.save_pretrained(out)
    return tokenizer
