"""What the children of these tests run: each request names what to do."""

import os
import sys
import time
from collections.abc import Callable


def scripted(setup: bytes) -> Callable[[bytes], bytes]:
    if setup == b"refuse":
        raise ValueError("no")

    def handle(request: bytes) -> bytes:
        command, _, argument = request.partition(b" ")
        match command:
            case b"echo":
                os.write(1, b"a library that prints to standard output")
                return setup + argument
            case b"pid":
                return str(os.getpid()).encode()
            case b"hang":
                time.sleep(3600)
            case b"spin":
                while True:
                    pass
            case b"die":
                os._exit(3)
            case b"raise":
                raise ValueError(argument.decode())
            case b"exit":
                sys.exit(1)
            case b"large":
                return b"x" * int(argument)
            case b"allocate":
                return str(len(bytearray(int(argument)))).encode()
            case b"environment":
                return "\n".join(sorted(os.environ)).encode()
        raise AssertionError("unknown command")

    return handle
