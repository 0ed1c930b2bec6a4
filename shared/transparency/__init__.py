"""The formats and proofs of a C2SP transparency log, for the log itself and for whoever verifies it offline.

Everything here is pure: bytes in, bytes out, with the log's public key as the only thing to trust.
"""
