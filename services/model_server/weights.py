"""Model weights: read from safetensors or GGUF, cut into safetensors shards, loaded from memory.

Weights exist as plaintext in memory and in the files that the importing person named; nothing here writes any.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

from services.model_server.architectures import UnsupportedModel, empty_model, expected_tensors, model_class
from shared import errors

DTYPES = frozenset({torch.bfloat16, torch.float16, torch.float32})
SHARD_BYTES = 256 << 20
GGUF_FAULTS = (ValueError, LookupError, TypeError, OverflowError, RuntimeError, MemoryError, struct.error)

_HEADER_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}

TensorReader = Callable[[str], torch.Tensor]


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights that can be read tensor by tensor, once. All tensors have `dtype`, one of `DTYPES`."""

    dtype: torch.dtype
    readers: Mapping[str, TensorReader]


def read_safetensors(files: Iterable[Path], expected: Mapping[str, tuple[int, ...]]) -> Weights:
    """Return the weights in `files`; no tensor is read yet.

    Raises `UnsupportedModel` unless the files hold exactly the `expected` tensors in the expected shapes, all of
    one of `DTYPES`. An output head that is stored although the model ties it to the embedding is left out.
    """
    readers: dict[str, TensorReader] = {}
    dtypes: set[str] = set()
    for file in files:
        try:
            opened = safetensors.safe_open(file, framework="pt")  # checks the header against the file's size
            slices = {name: opened.get_slice(name) for name in opened.keys()}  # type: ignore[no-untyped-call] # noqa: SIM118
        except (safetensors.SafetensorError, OSError):
            raise UnsupportedModel("a safetensors file is malformed") from None
        for name, stored in slices.items():
            if name == "lm_head.weight" and name not in expected:
                continue
            if name in readers or tuple(stored.get_shape()) != expected.get(name):
                raise UnsupportedModel("the files hold a tensor that the architecture does not have")
            readers[name] = opened.get_tensor
            dtypes.add(stored.get_dtype())
    if readers.keys() != expected.keys():
        raise UnsupportedModel("the files lack a tensor that the architecture has")
    if len(dtypes) != 1 or not dtypes <= _HEADER_DTYPES.keys():
        raise UnsupportedModel("weights must all be bfloat16, all float16 or all float32")
    return Weights(dtype=_HEADER_DTYPES[dtypes.pop()], readers=readers)


def read_gguf(file: Path, model: PreTrainedModel, expected: Mapping[str, tuple[int, ...]], *, tensors: int) -> Weights:
    """Dequantise the GGUF `file` to bfloat16 in memory and return its weights.

    `model` is the empty model that names are mapped to, `tensors` the number that the file's header states.
    Raises `UnsupportedModel` unless every tensor of the file is one of `expected`.
    """
    try:
        loaded: dict[str, torch.Tensor] = load_gguf_checkpoint(  # type: ignore[no-untyped-call]
            str(file), return_tensors=True, model_to_load=model, torch_dtype=torch.bfloat16
        )["tensors"]
    except GGUF_FAULTS:
        raise UnsupportedModel("the GGUF file is malformed or of a kind that is not supported") from None
    if {name: tuple(tensor.shape) for name, tensor in loaded.items()} != expected or len(loaded) != tensors:
        raise UnsupportedModel("the GGUF file's tensors are not those of its architecture")
    return Weights(dtype=torch.bfloat16, readers=dict.fromkeys(list(loaded), loaded.pop))


def shards(weights: Weights, *, shard_bytes: int = SHARD_BYTES) -> Iterator[bytes]:
    """Yield the tensors, in order of name, as safetensors files of about `shard_bytes` (or one tensor) each.

    Raises `UnsupportedModel` for a value that is not finite: one such weight would stop the whole batch.
    """
    batch: dict[str, torch.Tensor] = {}
    size = 0
    for name in sorted(weights.readers):
        tensor = weights.readers[name](name)
        if not torch.isfinite(tensor).all():
            raise UnsupportedModel("the weights hold values that are not finite")
        if batch and size + tensor.nbytes > shard_bytes:
            yield safetensors.torch.save(batch)
            batch, size = {}, 0
        batch[name] = tensor.contiguous()
        size += tensor.nbytes
    yield safetensors.torch.save(batch)


def load(config: PretrainedConfig, parts: Iterable[bytes]) -> PreTrainedModel:
    """Return the model that `config` describes with the weights in `parts`, ready for inference.

    `parts` are the shards that `shards` made; they are read one at a time. Raises `DataLoss` unless together
    they are exactly the model's tensors. CPU-bound.
    """
    expected = expected_tensors(empty_model(config))
    state: dict[str, torch.Tensor] = {}
    for part in parts:
        try:
            state.update(safetensors.torch.load(part))
        except safetensors.SafetensorError:
            raise errors.DataLoss("a weight shard is not a safetensors file") from None
    dtypes = {tensor.dtype for tensor in state.values()}
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    if shapes != expected or len(dtypes) != 1 or not dtypes <= DTYPES:
        raise errors.DataLoss("the weight shards are not those of the model")
    model: PreTrainedModel = model_class(config).from_pretrained(
        None, config=config, state_dict=state, dtype=dtypes.pop(), attn_implementation="sdpa", local_files_only=True
    )
    model.eval()  # type: ignore[no-untyped-call]
    return model


def parameter_count(expected: Mapping[str, tuple[int, ...]]) -> int:
    """Return the number of parameters in the tensors that `expected_tensors` returned."""
    return sum(math.prod(shape) for shape in expected.values())
