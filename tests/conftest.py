"""Before any test module imports grpc: the TLS floor is read when gRPC is first imported."""

import shared.rpc  # noqa: F401
