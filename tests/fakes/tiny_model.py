"""A tiny random model with a real tokenizer and chat template: the same bytes each time, built in a second."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path

import torch
import transformers
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

from shared.objects import ArtifactRef

SYSTEM = "You are a tiny test model."
TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
_CORPUS = (
    "the quick brown fox jumps over the lazy dog and the policy guard allows or denies every answer",
    "system user assistant question answer record evidence token model server audit training data",
    "Paris is the capital of France. Grüße aus Köln, naïve café, 日本語 and emoji 🙂 too.",
)


def tiny_tokenizer() -> Tokenizer:
    """Train a byte-level BPE of at most 400 tokens with the ChatML control tokens and one ordinary `<think>`."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=399,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return tokenizer


def build_tiny_model(directory: Path, *, seed: int = 0, family: str = "Llama") -> Path:
    """Write a model of the `family` to `directory` as a safetensors checkpoint (float32, some 100,000 parameters)."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer()
    config = getattr(transformers, f"{family}Config")(
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        vocab_size=tokenizer.get_vocab_size() + 8,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.token_to_id("<|im_start|>"),
        eos_token_id=tokenizer.token_to_id("<|im_end|>"),
        initializer_range=0.5,  # spreads the logits, so that greedy answers vary and never tie
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        getattr(transformers, f"{family}ForCausalLM")(config).save_pretrained(directory)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": TEMPLATE})
    )
    return directory


class MemoryObjects:
    """An object store in memory, with the read and write side of the real one."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}

    def write(self, name: str, data: Iterable[bytes], *, purpose: str) -> ArtifactRef:
        """Keep `data` under `name`."""
        content = b"".join(data)
        uri = f"memory:///{purpose}/{name}"
        self.objects[uri] = content
        digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
        return ArtifactRef(uri=uri, digest=digest, size=len(content), key_id="test")

    def read_bytes(self, ref: ArtifactRef, *, purpose: str, limit: int) -> bytes:
        """Return what was written under the same purpose."""
        assert ref.uri.startswith(f"memory:///{purpose}/")
        assert ref.size <= limit
        return self.objects[ref.uri]
