"""The `bastide` command: one folder (`--home`) with certificates and tokens, three services, groups of verbs."""

import os

# What the transport has to say reaches people as one panel, not as log lines of the library. Read at import of grpc.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
