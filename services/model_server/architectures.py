"""The model architectures that may be imported and loaded, and the checks on their configuration.

Only classes that ship inside transformers are built; nothing a configuration says can name other code.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from transformers import PretrainedConfig, PreTrainedModel

from shared import errors

MAX_CONFIG_BYTES = 1 << 20
_MODEL_TYPES = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}
# What can pull in other code, other files or another arithmetic than the stated weights.
_FORBIDDEN = ("auto_map", "custom_pipelines", "quantization_config", "trust_remote_code", "adapter_config")
_LEGACY_FIELDS = frozenset({"rope_theta", "rope_scaling"})
_NOT_FIELDS = frozenset({"model_type", "architectures", "dtype", "transformers_version"})
# Their classes take floats alone, while canonical JSON (RFC 8785) writes 1.0 as 1.
_FLOATS = ("rms_norm_eps", "initializer_range")
_POSITIVE = ("rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters")
_MAX_NUMBER = (1 << 53) - 1  # beyond it canonical JSON has no integers
_BOUNDS = {
    "hidden_size": 1 << 16,
    "intermediate_size": 1 << 18,
    "num_hidden_layers": 512,
    "num_attention_heads": 1024,
    "num_key_value_heads": 1024,
    "head_dim": 1024,
    "vocab_size": 1 << 20,
    "max_position_embeddings": 1 << 22,
}


class UnsupportedModel(errors.Error):
    """The model is of a kind that is never imported: unknown code, unknown format, or a malformed file."""

    code = errors.Code.FAILED_PRECONDITION
    reason = "UNSUPPORTED_MODEL"


def parse_config(raw: bytes) -> dict[str, Any]:
    """Return the JSON object in `raw`; raises `UnsupportedModel` if it is not one, or is oversize.

    No string in it holds half a character (a lone surrogate), which nothing could store.
    """
    if len(raw) > MAX_CONFIG_BYTES:
        raise UnsupportedModel("the model's configuration is too large")
    try:
        declared = json.loads(raw)
        json.dumps(declared, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise UnsupportedModel("the model's configuration is not JSON") from None
    if not isinstance(declared, dict):
        raise UnsupportedModel("the model's configuration is not a JSON object")
    return declared


def build_config(declared: Mapping[str, Any]) -> PretrainedConfig:
    """Return the checked configuration of a known architecture, free of anything that names code or files.

    Raises `UnsupportedModel` for an unknown architecture, remote code, quantised weights, absurd sizes and numbers
    that no model computes with.
    """
    for key in _FORBIDDEN:
        if declared.get(key):
            raise UnsupportedModel(f"a model configuration with {key} is refused")
    family = _MODEL_TYPES.get(str(declared.get("model_type")))
    if family is None or declared.get("architectures", [f"{family}ForCausalLM"]) != [f"{family}ForCausalLM"]:
        raise UnsupportedModel(f"the architecture is not one of {', '.join(sorted(_MODEL_TYPES))}")
    for key, bound in _BOUNDS.items():
        value = declared.get(key)
        if value is not None and not (type(value) is int and 0 < value <= bound):
            raise UnsupportedModel(f"the configuration's {key} is outside 1 to {bound}")
    kind: type[PretrainedConfig] = getattr(transformers, f"{family}Config")
    known = (kind().to_dict().keys() | _LEGACY_FIELDS) - _NOT_FIELDS
    fields = {key: value for key, value in declared.items() if key in known}
    for key, value in fields.items():
        _check_numbers(key, value, positive=key in _POSITIVE)
    fields |= {key: float(fields[key]) for key in _FLOATS if type(fields.get(key)) is int}
    try:
        config = kind(**fields)
    except Exception:  # noqa: BLE001 - each configuration class validates in its own way
        raise UnsupportedModel("the model's configuration is malformed") from None
    config.architectures = [f"{family}ForCausalLM"]
    return config


def _check_numbers(key: str, value: object, *, positive: bool) -> None:
    """Raise `UnsupportedModel` for a number in `value` that is not finite, too large or, if asked, not positive."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            _check_numbers(key, item, positive=positive)
    elif isinstance(value, bool) or not isinstance(value, int | float):
        return
    elif not abs(value) <= _MAX_NUMBER or (positive and not value > 0):  # `not`, for of NaN every comparison is false
        raise UnsupportedModel(f"the configuration's {key} holds a number that makes no sense")


def model_class(config: PretrainedConfig) -> type[PreTrainedModel]:
    """Return the transformers class that `config`, made by `build_config`, belongs to."""
    found: type[PreTrainedModel] = getattr(transformers, f"{_MODEL_TYPES[config.model_type]}ForCausalLM")
    return found


def empty_model(config: PretrainedConfig) -> PreTrainedModel:
    """Return the model without storage (on torch's meta device); raises `UnsupportedModel` if it has none."""
    try:
        with torch.device("meta"):
            return model_class(config)(config)
    except Exception:  # noqa: BLE001 - a shape that does not fit fails anywhere in the layers
        raise UnsupportedModel("no model can be built from this configuration") from None


def expected_tensors(model: PreTrainedModel) -> dict[str, tuple[int, ...]]:
    """Return name and shape of every tensor that weights for `model` MUST hold; tied ones count once."""
    tied = set(model.all_tied_weights_keys)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
