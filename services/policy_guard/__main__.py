"""`python -m services.policy_guard`: the guard, its migrations, and what is done on its host without it."""

from __future__ import annotations

import sys

from services.policy_guard.administration import bootstrap
from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.server import serve
from shared.rpc.main import main

if __name__ == "__main__":
    sys.exit(main("policy_guard", PolicyGuardSettings, serve, migrations=SCRIPTS, commands={"bootstrap": bootstrap}))
