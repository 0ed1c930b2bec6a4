"""A model as its maker published it: parsed from a safetensors directory or a GGUF file, nothing stored yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PretrainedConfig
from transformers.integrations.gguf.gguf_tokenizer_mapping import (
    GGUF_PRE_TOKENIZER_SPLITS,
    convert_gguf_tokenizer,
    get_gguf_tokenizer,
)
from transformers.integrations.gguf.reader import read_gguf_metadata
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from services.model_server.architectures import (
    MAX_CONFIG_BYTES,
    UnsupportedModel,
    build_config,
    empty_model,
    expected_tensors,
    parse_config,
)
from services.model_server.sampling import SamplingDefaults, gguf_sampling_defaults, sampling_defaults
from services.model_server.template import MAX_TEMPLATE_CHARACTERS, ChatTemplate, UnsupportedTemplate
from services.model_server.vocabulary import MAX_TOKENIZER_BYTES, UnsupportedTokenizer
from services.model_server.weights import (
    GGUF_FAULTS,
    Weights,
    parameter_count,
    read_gguf,
    read_safetensors,
)

_GGUF_ARCHITECTURES = frozenset({"llama", "qwen2", "qwen3"})
# transformers gives these GPT-2's own split; smollm's merges never join digits, so its digit split adds nothing.
_GPT2_SPLITS = frozenset({"gpt-2", "smollm"})


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """The parts of a published model. `license` is what the files state, if anything."""

    config: PretrainedConfig
    sampling: SamplingDefaults
    tokenizer: bytes
    template: ChatTemplate
    license: str | None
    parameters: int
    weights: Weights


def read_checkpoint(files: Mapping[str, Path]) -> Checkpoint:
    """Parse the model in `files`, which `read_source` gave: one GGUF file, or a directory of safetensors.

    Raises `UnsupportedModel`, `UnsupportedTokenizer` or `UnsupportedTemplate` for all else.
    """
    suffixes = [Path(name).suffix.lower() for name in files]
    if suffixes == [".gguf"]:
        return _read_gguf_file(next(iter(files.values())))
    if ".gguf" in suffixes or ".safetensors" not in suffixes:
        raise UnsupportedModel("a model is one GGUF file or a directory of safetensors")
    return _read_directory(files)


def _read_directory(files: Mapping[str, Path]) -> Checkpoint:
    declared = _json_file(files, "config.json")
    generation = _json_file(files, "generation_config.json") if "generation_config.json" in files else {}
    tokenizer = _json_file(files, "tokenizer_config.json")
    declared["eos_token_id"] = _ids(declared.get("eos_token_id")) + _ids(generation.get("eos_token_id"))
    config = build_config(declared)
    expected = expected_tensors(empty_model(config))
    return Checkpoint(
        config=config,
        sampling=sampling_defaults(generation),
        tokenizer=_file(files, "tokenizer.json", MAX_TOKENIZER_BYTES),
        template=ChatTemplate(
            text=_template_text(files, tokenizer),
            bos_token=_token_text(tokenizer.get("bos_token")),
            eos_token=_token_text(tokenizer.get("eos_token")),
        ),
        license=None,
        parameters=parameter_count(expected),
        weights=read_safetensors([file for name, file in files.items() if name.endswith(".safetensors")], expected),
    )


def _read_gguf_file(file: Path) -> Checkpoint:
    try:
        metadata, tensors = read_gguf_metadata(str(file))
        _refuse_unsupported_gguf(metadata)
        declared = load_gguf_checkpoint(str(file))["config"]  # type: ignore[no-untyped-call]
        kind, vocabulary, tokenizer = get_gguf_tokenizer(str(file))
        encoder, _ = convert_gguf_tokenizer(kind, vocabulary)
    except GGUF_FAULTS:
        raise UnsupportedModel("the GGUF file is malformed or of a kind that is not supported") from None
    config = build_config(declared)
    model = empty_model(config)
    expected = expected_tensors(model)
    stated_license = metadata.get("general.license")
    return Checkpoint(
        config=config,
        sampling=gguf_sampling_defaults(metadata),
        tokenizer=encoder.to_str().encode(),
        template=ChatTemplate(
            text=_text(tokenizer.get("chat_template")),
            bos_token=_token_text(tokenizer.get("bos_token")),
            eos_token=_token_text(tokenizer.get("eos_token")),
        ),
        license=stated_license if isinstance(stated_license, str) else None,
        parameters=parameter_count(expected),
        weights=read_gguf(file, model, expected, tensors=len(tensors)),
    )


def _refuse_unsupported_gguf(metadata: Mapping[str, Any]) -> None:
    architecture = metadata["general.architecture"]
    if architecture not in _GGUF_ARCHITECTURES:
        raise UnsupportedModel(f"the GGUF architecture is not one of {', '.join(sorted(_GGUF_ARCHITECTURES))}")
    if metadata.get(f"{architecture}.rope.scaling.type", "none") != "none":
        raise UnsupportedModel("a GGUF file with rotary scaling is refused: its scale would be lost")
    if metadata.get("tokenizer.ggml.model") != "gpt2":
        raise UnsupportedTokenizer("only byte-level BPE tokenizers are supported")
    if metadata.get("tokenizer.ggml.pre") not in _GPT2_SPLITS | GGUF_PRE_TOKENIZER_SPLITS.keys():
        raise UnsupportedTokenizer("the GGUF file names an unknown way to split text")


def _template_text(files: Mapping[str, Path], tokenizer: Mapping[str, Any]) -> str:
    if "chat_template.jinja" in files:
        try:
            return _file(files, "chat_template.jinja", 4 * MAX_TEMPLATE_CHARACTERS).decode()
        except UnicodeDecodeError:
            raise UnsupportedTemplate("the chat template is not UTF-8") from None
    return _text(tokenizer.get("chat_template"))


def _text(template: object) -> str:
    if not isinstance(template, str):
        raise UnsupportedTemplate("the model has no chat template, or several")
    return template


def _token_text(declared: object) -> str | None:
    """Return a special token's text from `tokenizer_config.json`, which holds it bare or in an object."""
    text = declared.get("content") if isinstance(declared, dict) else declared
    return text if isinstance(text, str) else None


def _ids(declared: object) -> list[int]:
    ids: list[Any] = declared if isinstance(declared, list) else [] if declared is None else [declared]
    if not all(type(index) is int and index >= 0 for index in ids):
        raise UnsupportedModel("an eos_token_id is not a token's id")
    return ids


def _json_file(files: Mapping[str, Path], name: str) -> dict[str, Any]:
    return parse_config(_file(files, name, MAX_CONFIG_BYTES))


def _file(files: Mapping[str, Path], name: str, limit: int) -> bytes:
    if name not in files:
        raise UnsupportedModel(f"the model has no {name}")
    with files[name].open("rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise UnsupportedModel(f"{name} is too large")
    return data
