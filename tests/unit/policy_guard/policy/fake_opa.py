"""An `opa` that is healthy and answers every question with the bytes of the file named by its HOME's `reply`."""

import asyncio
import sys
from pathlib import Path

from aiohttp import web


async def answer(request: web.Request) -> web.Response:
    mode, _, body = Path(__file__).with_name("reply").read_bytes().partition(b"\n")
    if mode == b"hang":
        await asyncio.sleep(3600)
    if mode == b"close":
        request.transport.close()
    status = int(mode) if mode.isdigit() else 200
    return web.Response(status=status, body=body, content_type="application/json")


async def healthy(_: web.Request) -> web.Response:
    return web.json_response({})


application = web.Application()
application.router.add_get("/health", healthy)
application.router.add_post("/v1/data/{path:.*}", answer)
socket = sys.argv[sys.argv.index("--addr") + 1].removeprefix("unix://")
web.run_app(application, path=socket, print=None)
