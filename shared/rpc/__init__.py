"""One server, one channel, one chain for every service of the suite.

Importing this package fixes the TLS floor before gRPC reads it: with ECDSA leaves and this cipher list a TLS 1.2
handshake finds no common suite. The authenticate layer checks the negotiated version again.
"""

import os

os.environ["GRPC_SSL_CIPHER_SUITES"] = "ECDHE-RSA-AES256-GCM-SHA384"
