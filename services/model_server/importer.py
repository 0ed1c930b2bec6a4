"""Import of a base model: parse, check, and write every part encrypted; load it back into memory.

An import accepts a directory of safetensors or one GGUF file. What it writes goes through an `ObjectWriter`,
which encrypts; what it loads comes through an `ObjectReader`. Neither touches the disk with plaintext.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import rfc8785
from transformers import PretrainedConfig, PreTrainedModel

from services.model_server.architectures import (
    MAX_CONFIG_BYTES,
    UnsupportedModel,
    build_config,
    empty_model,
    expected_tensors,
    parse_config,
)
from services.model_server.checkpoint import read_checkpoint
from services.model_server.sampling import SamplingDefaults, sampling_defaults
from services.model_server.sources import read_source
from services.model_server.template import ChatTemplate, PromptEncoder
from services.model_server.vocabulary import MAX_TOKENIZER_BYTES, Vocabulary
from services.model_server.weights import SHARD_BYTES, load, shards
from shared.objects import ArtifactRef

MAX_MODEL_BYTES = 64 << 30
CONFIG_PURPOSE = "model-config"
TOKENIZER_PURPOSE = "model-tokenizer"
WEIGHTS_PURPOSE = "model-weights"
# Under this key the stored configuration holds the model's sampling defaults.
_SAMPLING = "sampling"


class ObjectWriter(Protocol):
    """The write side of the encrypted object store."""

    def write(self, name: str, data: Iterable[bytes], *, purpose: str) -> ArtifactRef:
        """Store `data` encrypted under `name`, and return its reference once it is durable."""


class ObjectReader(Protocol):
    """The read side of the encrypted object store."""

    def read_bytes(self, ref: ArtifactRef, *, purpose: str, limit: int) -> bytes:
        """Return the authenticated plaintext of `ref`, of at most `limit` bytes."""


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where a model came from. `digest` is over the files as they were read."""

    name: str
    version: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class ImportedModel:
    """An imported base model: facts about it, and references to its encrypted parts.

    `license` is an SPDX identifier as the source or the importing person states it; `parameters` counts tied
    tensors once; `weights` are safetensors files, in order.
    """

    architecture: str
    parameters: int
    dtype: str
    license: str
    source: Source
    max_context: int
    template: ChatTemplate
    config: ArtifactRef
    tokenizer: ArtifactRef
    weights: tuple[ArtifactRef, ...]

    @property
    def weight_bytes(self) -> int:
        """The size of all shards."""
        return sum(shard.size for shard in self.weights)

    @property
    def weights_digest(self) -> str:
        """The `sha256:` digest of the shards' digests, in order, as an RFC 8785 array."""
        return _sha256(rfc8785.dumps([shard.digest for shard in self.weights]))

    @property
    def digest(self) -> str:
        """The `sha256:` digest that names everything the model answers with, wherever it lies."""
        parts = {
            "config": self.config.digest,
            "tokenizer": self.tokenizer.digest,
            "template": self.template.digest,
            "bos_token": self.template.bos_token,
            "eos_token": self.template.eos_token,
            "weights": self.weights_digest,
        }
        return _sha256(rfc8785.dumps(dict(parts)))


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model in memory: its network, and how conversations become its tokens and its tokens text."""

    network: PreTrainedModel
    vocabulary: Vocabulary
    prompts: PromptEncoder
    sampling: SamplingDefaults
    stop_tokens: frozenset[int]


def import_model(
    path: Path,
    *,
    writer: ObjectWriter,
    prefix: str,
    name: str,
    version: str,
    declared_license: str | None = None,
    max_bytes: int = MAX_MODEL_BYTES,
    shard_bytes: int = SHARD_BYTES,
) -> ImportedModel:
    """Import the model at `path` and write its parts under `prefix`; slow, and all CPU and disk.

    The files are held in memory meanwhile, `max_bytes` of them at most; a GGUF file's tensors come on top.

    Callers MUST give a fresh `prefix` for each attempt: a failed import leaves the parts written so far, which
    nothing names. `name` and `version` say where the files come from. Raises `UnsupportedModel`,
    `UnsupportedTokenizer` or `UnsupportedTemplate` with the reason for a refusal, `NotFound`, and what the
    writer raises.
    """
    with read_source(path, max_bytes=max_bytes) as read:
        checkpoint = read_checkpoint(read.files)
        license_id = declared_license or checkpoint.license
        if not license_id:
            raise UnsupportedModel("the model states no licence and none was declared")
        if checkpoint.license and checkpoint.license.casefold() != license_id.casefold():
            raise UnsupportedModel("the declared licence is not the one that the model states")
        vocabulary = Vocabulary(checkpoint.tokenizer)
        if vocabulary.size > checkpoint.config.vocab_size:
            raise UnsupportedModel("the tokenizer has tokens that the model does not know")
        PromptEncoder(checkpoint.template, vocabulary)
        config = _with_stop_tokens(checkpoint.config, vocabulary, checkpoint.template)
        config[_SAMPLING] = checkpoint.sampling.document()
        document = _stored(config, tensors=checkpoint.weights.readers.keys())
        refs = tuple(
            writer.write(f"{prefix}/weights-{index:05d}.safetensors", (shard,), purpose=WEIGHTS_PURPOSE)
            for index, shard in enumerate(shards(checkpoint.weights, shard_bytes=shard_bytes))
        )
        return ImportedModel(
            architecture=config["architectures"][0],
            parameters=checkpoint.parameters,
            dtype=str(checkpoint.weights.dtype).removeprefix("torch."),
            license=license_id,
            source=Source(name=name, version=version, digest=read.digest),
            max_context=config["max_position_embeddings"],
            template=checkpoint.template,
            config=writer.write(f"{prefix}/config.json", (document,), purpose=CONFIG_PURPOSE),
            tokenizer=writer.write(f"{prefix}/tokenizer.json", (checkpoint.tokenizer,), purpose=TOKENIZER_PURPOSE),
            weights=refs,
        )


def load_model(model: ImportedModel, reader: ObjectReader) -> LoadedModel:
    """Decrypt `model` into memory, one shard at a time, and build it; CPU-bound.

    Raises `DataLoss` where the parts do not make up the model, and what `reader` raises.
    """
    declared = parse_config(reader.read_bytes(model.config, purpose=CONFIG_PURPOSE, limit=MAX_CONFIG_BYTES))
    config = build_config(declared)
    vocabulary = Vocabulary(reader.read_bytes(model.tokenizer, purpose=TOKENIZER_PURPOSE, limit=MAX_TOKENIZER_BYTES))
    parts = (reader.read_bytes(shard, purpose=WEIGHTS_PURPOSE, limit=MAX_MODEL_BYTES) for shard in model.weights)
    return LoadedModel(
        network=load(config, parts),
        vocabulary=vocabulary,
        prompts=PromptEncoder(model.template, vocabulary),
        sampling=sampling_defaults(declared.get(_SAMPLING, {})),
        stop_tokens=frozenset(_token_ids(config.eos_token_id)),
    )


def _with_stop_tokens(config: PretrainedConfig, vocabulary: Vocabulary, template: ChatTemplate) -> dict[str, Any]:
    """Return `config` as JSON, its `eos_token_id` naming every token that ends an answer."""
    stops = {index for index in _token_ids(config.eos_token_id) if index < config.vocab_size}
    if template.eos_token in vocabulary.control:
        stops.add(vocabulary.control[template.eos_token])
    if not stops:
        raise UnsupportedModel("the model names no token that ends an answer")
    document: dict[str, Any] = json.loads(config.to_json_string(use_diff=False))
    document["eos_token_id"] = sorted(stops)
    return document


def _stored(config: dict[str, Any], *, tensors: Collection[str]) -> bytes:
    """Return `config` as it is stored, once that has been read back as the configuration of the same `tensors`."""
    try:
        document = rfc8785.dumps(config)
    except rfc8785.CanonicalizationError:
        raise UnsupportedModel("the model's configuration holds what canonical JSON cannot") from None
    if expected_tensors(empty_model(build_config(parse_config(document)))).keys() != tensors:
        raise UnsupportedModel("the model's configuration would be another once it is stored")
    return document


def _token_ids(declared: int | list[int] | None) -> list[int]:
    if declared is None:
        return []
    return [declared] if isinstance(declared, int) else declared


def _sha256(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"
