"""`python -m services.audit`: the audit service, its migrations and its configuration check."""

from __future__ import annotations

import sys

from services.audit.config import AuditSettings
from services.audit.server import MIGRATIONS, serve
from shared.rpc.main import main

if __name__ == "__main__":
    sys.exit(main("audit", AuditSettings, serve, migrations=MIGRATIONS))
