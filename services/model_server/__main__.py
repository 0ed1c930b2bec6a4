"""`python -m services.model_server`: the model server, its migrations and its configuration check."""

from __future__ import annotations

import sys

from services.model_server.config import ModelServerSettings
from services.model_server.server import MIGRATIONS, serve
from shared.rpc.main import main

if __name__ == "__main__":
    sys.exit(main("model_server", ModelServerSettings, serve, migrations=MIGRATIONS))
