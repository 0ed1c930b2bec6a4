"""Bearer tokens of the people who signed in here: one file a person, mode 0600, in `<home>/cli`."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

from shared.cli.failures import Failure
from shared.keys import files

_SUBJECT = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._@+-]{0,254}")
# A token this close to its end would die on the way.
_MARGIN_SECONDS = 5.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Credential:
    """A token, the person it speaks for, the client certificate it is bound to, and its end in Unix seconds."""

    subject: str
    client: str
    expires_at: float
    token: str = dataclasses.field(repr=False)


class Credentials:
    """The cache. Reading refuses files that others could have read or changed."""

    def __init__(self, folder: Path) -> None:
        """Keep tokens in `folder`, which is created when the first one is saved."""
        self._folder = folder

    def save(self, credential: Credential) -> None:
        """Keep `credential` in place of an older one of the same person, who becomes the default."""
        path = self._path(credential.subject)
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.locked(self._folder):
            files.replace(path, json.dumps(dataclasses.asdict(credential)).encode())

    def get(self, subject: str = "") -> Credential:
        """Return the token of `subject`, by default of whoever signed in last. Raises Failure when there is none."""
        path = self._path(subject) if subject else self._latest()
        if path is None or not path.exists():
            who = f"{subject} is not" if subject else "nobody is"
            raise Failure(f"{who} signed in here: bastide login {subject or 'SUBJECT'}", title="not signed in")
        try:
            credential = Credential(**json.loads(files.read(path, forbidden_mode=files.PRIVATE)))
        except (ValueError, TypeError):
            raise Failure(f"{path} does not hold a token: bastide login", title="not signed in") from None
        if credential.expires_at - time.time() < _MARGIN_SECONDS:
            raise Failure(
                f"the token of {credential.subject} has expired: bastide login {credential.subject}",
                title="not signed in",
            )
        return credential

    def _latest(self) -> Path | None:
        found = sorted(self._folder.glob("*.json"), key=lambda path: path.stat().st_mtime_ns)
        return found[-1] if found else None

    def _path(self, subject: str) -> Path:
        if not _SUBJECT.fullmatch(subject):
            raise Failure(f"not a subject: {subject!r}")
        return self._folder / f"{subject}.json"
