"""The devnet chain as a server: JSON-RPC on loopback, and blocks in time.

Only programs on this machine may talk to it, and no web page: a browser sends an Origin, or a Host that is a name
(DNS rebinding), and neither is answered.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import structlog
from aiohttp import web

from contracts.evm import Evm, EvmRefused
from contracts.evm_rpc import EvmRpc, MethodUnknown
from market.errors import NodeMisconfigured, OctoError

log = structlog.get_logger()

BODY_LIMIT_BYTES = 1024 * 1024
BATCH_LIMIT = 200
PERIOD_S = 1
GATHER_S = 0.03  # an approval and what needs it, sent together, belong into one block
IDLE_AFTER_S = 60
IDLE_PERIOD_S = 10  # 60 MB of empty blocks a day would be 6 MB: nobody looks
_LOCAL = {"127.0.0.1", "localhost", "[::1]"}

Extra = Mapping[str, Callable[..., Awaitable[Any]]]


class BlockMaker:
    """A block every second: at once when a transaction comes and this second has none yet, else at the next one's
    start; an empty one at the end of a second, and only every IDLE_PERIOD_S when nothing has happened for a minute.

    So time stands still for nobody, and a burst of transactions does not run the chain's clock ahead of ours.
    With `at_once` each transaction gets a block immediately, and the clock may run ahead; for tests.
    """

    def __init__(self, evm: Evm, rpc: EvmRpc, *, at_once: bool) -> None:
        self._evm = evm
        self._rpc = rpc
        self.at_once = at_once
        self._stirred = asyncio.Event()
        self._busy_until = 0.0

    def stir(self) -> None:
        """A transaction came."""
        if self.at_once:
            while self._evm.has_waiting:
                self._make()
        self._stirred.set()

    async def run(self) -> None:
        while True:
            self._stirred.clear()
            self._step()
            wait_s = 1.0 - time.time() % 1.0 if self._evm.has_waiting else (0.9 - time.time() % 1.0) % 1.0
            try:
                await asyncio.wait_for(self._stirred.wait(), max(0.01, wait_s))
                await asyncio.sleep(GATHER_S)
            except TimeoutError:
                continue

    def _step(self) -> None:
        age_s = self._rpc.now() - self._evm.head.timestamp
        if self._evm.has_waiting:
            if age_s >= PERIOD_S:
                self._make()
                self._busy_until = time.monotonic() + IDLE_AFTER_S
        elif age_s >= (PERIOD_S if time.monotonic() < self._busy_until else IDLE_PERIOD_S) and time.time() % 1 > 0.85:
            self._make()

    def _make(self) -> None:
        try:
            self._evm.mine(self._rpc.now())
        except Exception:  # a transaction that py-evm stumbles over must not end the chain
            log.exception("block_failed")
            self._evm.forget_waiting()


class _Door:
    def __init__(self, rpc: EvmRpc, maker: BlockMaker, extra: Extra) -> None:
        self._rpc = rpc
        self._maker = maker
        self._extra = extra

    async def handle(self, request: web.Request) -> web.Response:
        host = (request.headers.get("Host") or "").rpartition(":")[0] or request.headers.get("Host", "")
        if "Origin" in request.headers or host not in _LOCAL or request.content_type != "application/json":
            return web.json_response(_error(None, -32600, "for programs on this machine only"), status=403)
        try:
            asked = json.loads(await request.read())
        except (ValueError, RecursionError):
            return web.json_response(_error(None, -32700, "parse error"))
        if not isinstance(asked, list):
            return web.json_response(await self._one(asked))
        if not 0 < len(asked) <= BATCH_LIMIT:
            return web.json_response(_error(None, -32600, f"a batch is 1 to {BATCH_LIMIT} requests"))
        return web.json_response([await self._one(one) for one in asked])

    async def _one(self, asked: Any) -> dict[str, Any]:
        number = asked.get("id") if isinstance(asked, dict) else None
        method = asked.get("method") if isinstance(asked, dict) else None
        params = asked.get("params", []) if isinstance(asked, dict) else None
        if not isinstance(method, str) or not isinstance(params, list) or len(params) > 16:
            return _error(number, -32600, "invalid request")
        try:
            if method in self._extra:
                result = await self._extra[method](*params)
            else:
                result = self._rpc.answer(method, params)
                if method == "eth_sendRawTransaction":
                    self._maker.stir()
        except MethodUnknown as error:
            return _error(number, -32601, error.message)
        except EvmRefused as error:
            return _error(number, -32000 if error.data is None else 3, error.message, error.data)
        except OctoError as error:
            return _error(number, -32000, str(error))
        except Exception as error:  # whatever py-evm raises, the server goes on
            log.exception("rpc_failed", method=method[:60])
            return _error(number, -32603, f"internal error ({type(error).__name__})")
        return {"jsonrpc": "2.0", "id": number, "result": result}


def _error(number: Any, code: int, message: str, data: bytes | None = None) -> dict[str, Any]:
    more = {"data": "0x" + data.hex()} if data is not None else {}
    return {"jsonrpc": "2.0", "id": number, "error": {"code": code, "message": message, **more}}


@asynccontextmanager
async def open_server(
    evm: Evm, rpc: EvmRpc, *, port: int, at_once: bool, extra: Extra | None = None
) -> AsyncIterator[tuple[str, BlockMaker]]:
    """Serve and make blocks; (URL, block maker). `extra` methods may be added later. Port 0 takes any.

    Raises NodeMisconfigured if the port is taken."""
    maker = BlockMaker(evm, rpc, at_once=at_once)
    app = web.Application(client_max_size=BODY_LIMIT_BYTES)
    app.router.add_post("/", _Door(rpc, maker, extra if extra is not None else {}).handle)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    making = asyncio.create_task(maker.run(), name="blocks")
    try:
        site = web.TCPSite(runner, "127.0.0.1", port)
        try:
            await site.start()
        except OSError as error:
            raise NodeMisconfigured(f"the chain cannot listen on port {port} ({error.strerror}).") from None
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", maker
    finally:
        making.cancel()
        await asyncio.gather(making, return_exceptions=True)
        await runner.cleanup()
