"""Tokenizer and text encoder: a two-layer CLIP text model that learns to state a caption's labels."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from ..scenes import HEADS, sample_scenes

MAX_LENGTH = 16
WIDTH = 96
BOS, EOS = "<|startoftext|>", "<|endoftext|>"


def build_tokenizer() -> CLIPTokenizer:
    """A CLIP tokenizer in which every word of the captions is one token and any other text still has one."""
    captions = sample_scenes(4000, seed=0).captions()
    bpe = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    bpe.pre_tokenizer = pre_tokenizers.Whitespace()
    bpe.train_from_iterator(captions, trainers.BpeTrainer(end_of_word_suffix="</w>", show_progress=False))
    merges = [tuple(m) for m in json.loads(bpe.to_str())["model"]["merges"]]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*alphabet, *(a + "</w>" for a in alphabet), *dict.fromkeys(a + b for a, b in merges), BOS, EOS]
    vocab = {token: i for i, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=MAX_LENGTH)


def tokenize(tokenizer, captions: list[str]) -> torch.Tensor:
    """Token ids (N, 16), padded as a StableDiffusionPipeline pads them."""
    return tokenizer(
        captions, padding="max_length", max_length=MAX_LENGTH, truncation=True, return_tensors="pt"
    ).input_ids


def train_text_encoder(out: Path, steps: int = 450, batch: int = 64, seed: int = 0) -> None:
    """Write ``out/tokenizer`` and ``out/text_encoder``: about half a CPU-minute."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=4 * WIDTH,
        projection_dim=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=MAX_LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    encoder = CLIPTextModel(config)
    heads = nn.ModuleDict({name: nn.Linear(2 * WIDTH, n) for name, n in HEADS.items()})
    parameters = [*encoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        scenes = sample_scenes(batch, seed=10_000 + step)
        loss, _ = _label_loss(encoder, heads, tokenizer, scenes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    scenes = sample_scenes(1000, seed=1, held_out=True)
    with torch.no_grad():
        loss, exact = _label_loss(encoder.eval(), heads, tokenizer, scenes)
    print(f"text encoder: every label read from {exact:.1%} of 1000 held-out captions")
    tokenizer.save_pretrained(out / "tokenizer")
    encoder.save_pretrained(out / "text_encoder")


def _label_loss(encoder, heads, tokenizer, scenes):
    ids = tokenize(tokenizer, scenes.captions())
    hidden = encoder(ids).last_hidden_state  # (N, 16, WIDTH)
    end = (ids == tokenizer.eos_token_id).int().argmax(1)
    summary = torch.cat([hidden[torch.arange(len(ids)), end], hidden[:, -1]], 1)
    logits, truth = {name: head(summary) for name, head in heads.items()}, scenes.labels()
    loss = sum(nn.functional.cross_entropy(logits[name], truth[name]) for name in HEADS)
    right = torch.stack([logits[name].argmax(1) == truth[name] for name in HEADS]).all(0)
    return loss, right.float().mean().item()
