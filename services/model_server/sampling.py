"""How a model draws tokens where a call does not say: as its maker states it beside the weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.model_server.architectures import UnsupportedModel

MAX_TEMPERATURE = 2.0
MAX_TOP_K = (1 << 31) - 1


@dataclass(frozen=True, kw_only=True)
class SamplingDefaults:
    """`temperature` 0 is greedy decoding, at most 2; `top_p` is above 0, at most 1; `top_k` 0 means no such limit."""

    temperature: float
    top_p: float
    top_k: int

    def document(self) -> dict[str, Any]:
        """Return these defaults as a `generation_config.json` states them."""
        return {
            "do_sample": self.temperature > 0,
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": self.top_k,
        }


def sampling_defaults(declared: Mapping[str, Any]) -> SamplingDefaults:
    """Return what `declared`, in the form of transformers' `GenerationConfig`, says about drawing tokens.

    Without `do_sample` a model is greedy, as in transformers. What is not stated is neutral: transformers' own
    `top_k` of 50 is that library's choice and not the maker's. Raises `UnsupportedModel` for values out of range.
    """
    stated = {name: value for name, value in declared.items() if value is not None}
    do_sample = stated.get("do_sample", False)
    temperature, top_p, top_k = stated.get("temperature", 1.0), stated.get("top_p", 1.0), stated.get("top_k", 0)
    sound = {
        "do_sample": type(do_sample) is bool,
        "temperature": type(temperature) in {int, float} and 0 <= temperature <= MAX_TEMPERATURE,
        "top_p": type(top_p) in {int, float} and 0 < top_p <= 1,
        "top_k": type(top_k) is int and -1 <= top_k <= MAX_TOP_K,  # vLLM writes -1 for no limit
    }
    for name, ok in sound.items():
        if not ok:
            raise UnsupportedModel(f"the generation configuration's {name} is out of range")
    return SamplingDefaults(
        temperature=float(temperature) if do_sample else 0.0, top_p=float(top_p), top_k=max(top_k, 0)
    )


def gguf_sampling_defaults(metadata: Mapping[str, Any]) -> SamplingDefaults:
    """Return what a GGUF file's `general.sampling` keys say; without a temperature the model is greedy.

    Raises `UnsupportedModel` for values out of range.
    """
    names = {"temperature": "temp", "top_p": "top_p", "top_k": "top_k"}
    stated = {name: metadata.get(f"general.sampling.{key}") for name, key in names.items()}
    return sampling_defaults({"do_sample": stated["temperature"] is not None} | stated)
