"""Configuration: one TOML file a service, overridden by environment variables, refused when anything is unknown.

A service declares frozen pydantic models (`Settings` subclasses) whose every field has a description; `load` fills
them from a file and from `BASTIDE_<SERVICE>_<KEY>` (nested keys joined by two underscores), and remembers where each
value came from so that `--check-config` can say so. Secrets are never values: settings hold paths to files.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Generic, TypeVar

import pydantic


class Settings(pydantic.BaseModel):
    """Base of every settings model: frozen, unknown keys refused, keyword-only."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", validate_default=True)


class ConfigError(Exception):
    """The configuration is refused; the message names the keys and says what is wrong with each."""


S = TypeVar("S", bound=Settings)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Value:
    """One effective value and its origin: `file`, the variable's name, or `default`."""

    key: str
    value: str
    origin: str
    description: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Loaded(Generic[S]):
    """Settings with the origin of each value."""

    settings: S
    values: tuple[Value, ...]


def load(model: type[S], *, file: Path | None, prefix: str, environ: Mapping[str, str]) -> Loaded[S]:
    """Return `model` filled from `file` (TOML) and from variables that begin with `prefix` + `_`.

    Relative paths in the file count from the file's folder. Raises ConfigError.
    """
    document: dict[str, Any] = {}
    if file is not None:
        try:
            document = tomllib.loads(file.read_text())
        except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from error
        _resolve_paths(document, model, file.resolve().parent)
    origins = {key: "file" for key, _ in _leaves(document)}
    for name, text in sorted(environ.items()):
        if not name.startswith(prefix + "_"):
            continue
        path = name.removeprefix(prefix + "_").lower().split("__")
        if _field(model, path) is None:
            raise ConfigError(f"{name}: no such setting")
        target = document
        for part in path[:-1]:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise ConfigError(f"{name}: {part} is no table in the file; set it whole, as JSON")
        target[path[-1]] = _decode(text)
        origins[".".join(path)] = name
    try:
        settings = model.model_validate(document)
    except pydantic.ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'configuration'}: {e['msg']}" for e in error.errors()]
        raise ConfigError("\n".join(lines)) from None
    return Loaded(settings=settings, values=tuple(_explain(settings, origins, ())))


def _decode(text: str) -> Any:
    """Read lists, numbers and booleans as JSON; everything else is the text itself."""
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def _nested(model: type[Settings], part: str) -> type[Settings] | None:
    field = model.model_fields.get(part)
    candidates = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
    for kind in candidates:
        if isinstance(kind, type) and issubclass(kind, Settings):
            return kind
    return None


def _field(model: type[Settings], path: list[str]) -> pydantic.fields.FieldInfo | None:
    for part in path[:-1]:
        nested = _nested(model, part)
        if nested is None:
            return None
        model = nested
    return model.model_fields.get(path[-1])


def _leaves(document: Mapping[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for key, value in document.items():
        if isinstance(value, dict):
            yield from _leaves(value, (*above, key))
        else:
            yield ".".join((*above, key)), value


def _resolve_paths(document: dict[str, Any], model: type[Settings], folder: Path) -> None:
    for key, value in document.items():
        nested = _nested(model, key)
        if nested is not None:
            for item in value if isinstance(value, list) else [value]:
                if isinstance(item, dict):
                    _resolve_paths(item, nested, folder)
        elif key in model.model_fields and "Path" in str(model.model_fields[key].annotation):
            paths = [str(folder / item) for item in (value if isinstance(value, list) else [value])]
            document[key] = paths if isinstance(value, list) else paths[0]


def _explain(settings: Settings, origins: Mapping[str, str], above: tuple[str, ...]) -> Iterator[Value]:
    for name, field in type(settings).model_fields.items():
        value = getattr(settings, name)
        key = ".".join((*above, name))
        if isinstance(value, Settings):
            yield from _explain(value, origins, (*above, name))
        else:
            yield Value(
                key=key,
                value=str(value),
                origin=origins.get(key, "default"),
                description=field.description or "",
            )
