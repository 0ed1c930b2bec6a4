"""`python -m services.policy_guard`: the guard, its migrations, and what is done on its host without it."""

from __future__ import annotations

import sys

from services.policy_guard import commands
from services.policy_guard.administration import bootstrap, recover_administrator
from services.policy_guard.config import PolicyGuardSettings
from services.policy_guard.migrations import SCRIPTS
from services.policy_guard.server import serve
from shared import observability
from shared.rpc.main import main

# These judge a folder of policies and need no configured guard.
_WITHOUT_SETTINGS = {"check": commands.check, "test": commands.test, "eval": commands.evaluate, "pack": commands.pack}

if __name__ == "__main__":
    if len(sys.argv) > 1 and sys.argv[1] in _WITHOUT_SETTINGS:
        # What they print is JSON for other programs; the log goes to standard error.
        observability.configure(observability.ObservabilitySettings(log_level="WARNING"), service="policy_guard")
        sys.exit(_WITHOUT_SETTINGS[sys.argv[1]](None, sys.argv[2:]))
    sys.exit(
        main(
            "policy_guard",
            PolicyGuardSettings,
            serve,
            migrations=SCRIPTS,
            commands={
                "bootstrap": bootstrap,
                "recover-administrator": recover_administrator,
                "recover": commands.recover,
                **_WITHOUT_SETTINGS,
            },
        )
    )
