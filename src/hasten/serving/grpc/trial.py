"""Check that gRPC's library answers at all in this process.

Where a thread of the library's pool can't be created, as with too little memory, the library goes on
without: its server listens and takes connections, and no call is ever answered, nor later ones with more memory.
"""

from __future__ import annotations

import asyncio
import os
from typing import Any

from hasten.errors import InputError

ANSWER_S = 30.0
"""Limit for an answer."""
_SERVICE, _METHOD = "hasten", "Answer"


async def check_that_it_answers() -> None:
    """Ask a server of the library's in this process, before the port that clients use is there.

    Raises:
        InputError: no answer came.
    """
    import grpc

    async def answer(requests: Any, context: Any) -> bytes:
        return b""

    # A name that nobody guesses, without a file: the disk may be full.
    place = f"unix-abstract:hasten-{os.urandom(16).hex()}"
    server = grpc.aio.server()
    handlers = {_METHOD: grpc.stream_unary_rpc_method_handler(answer)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    try:
        server.add_insecure_port(place)
        await server.start()
        channel = grpc.aio.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)])
        ask = channel.unary_unary(f"/{_SERVICE}/{_METHOD}")
        await asyncio.wait_for(ask(b""), ANSWER_S)
    except (TimeoutError, RuntimeError, grpc.RpcError) as error:
        raise InputError(
            f"gRPC's library didn't answer a call of this process within {ANSWER_S:g} s, perhaps "
            "because memory or threads are limited (ulimit -v, -u): raise the limits, or serve "
            "without gRPC"
        ) from error
    await channel.close()
    await server.stop(None)
