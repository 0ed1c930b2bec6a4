"""`python -m services.model_server`: the model server, its migrations and its configuration check."""

from __future__ import annotations

import sys

from services.model_server.config import ModelServerSettings
from services.model_server.migrations import SCRIPTS
from shared.rpc.main import main


async def serve(settings: ModelServerSettings) -> None:
    """Run the server. Imported only here: torch takes seconds that `migrate` and `--check-config` need not spend."""
    from services.model_server import server  # noqa: PLC0415

    await server.serve(settings)


if __name__ == "__main__":
    sys.exit(main("model_server", ModelServerSettings, serve, migrations=SCRIPTS))
