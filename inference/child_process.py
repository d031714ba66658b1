"""The node's side of any child process and its lives: started, watched, ended, started again.

Lives here: the process, the socket pair, the watchdog, the back-off. Must not know: jobs. What a child says is parsed
here and judged by the `Owner`: a model file may have taken it over.
"""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import Coroutine, Sequence
from typing import Any, Final, Generic, NoReturn, Protocol, TypeVar

from inference.frames import Dialect, F, Frame, FrameBuffer, S, pack
from inference.isolation import child_environment
from inference.restarting import LoadPatience, pause_s
from market.errors import EncodingInvalid, EngineFailed, ModelFileInvalid, NodeMisconfigured, OctoError
from market.values import from_plain, to_plain

RESTART_LIMIT_S: Final = 10.0
_LAST_WORDS_S: Final = 1.0
_READ_BYTES: Final = 1 << 18
_WORDS_LIMIT: Final = 500

T = TypeVar("T")


class Owner(Protocol):
    @property
    def silence_limit_s(self) -> float:
        """How long the child may say nothing while it is busy."""

    def busy(self) -> bool:
        """Whether the child has work, and so must be heard of."""

    def hear(self, frame: Frame) -> None:
        """A frame after "ready". Raises EncodingInvalid, TypeError or ValueError if it cannot be: that ends it."""

    def up(self) -> None:
        """It is ready, for the first time or again."""

    def down(self, error: OctoError) -> None:
        """It is gone with all it was doing; it will be started again."""


async def _to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """Short work that a cancellation may not cut in two: a process half started, or killed and not yet gone."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


class Child(Generic[S, F]):
    """`run` is its whole story; everything else is called while that runs. `least_load_s`: a start that is not the
    first is given so long at least."""

    def __init__(
        self, dialect: Dialect[S, F], settings: S, owner: Owner, *, command: Sequence[str], least_load_s: float
    ) -> None:
        self._dialect = dialect
        self._settings = settings
        self._owner = owner
        self._command = command
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._began_at = self._heard_at = 0.0
        self._patience = LoadPatience(least_load_s)
        self.failures = 0
        """Starts since it last came up."""
        self.facts: F | None = None
        self.ready = False
        self.broken: OctoError | None = None
        """Why the latest start failed; None as long as it may come up."""
        self.started: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None and self.ready else None

    def send(self, message: Sequence[Any], parts: Sequence[bytes] = ()) -> None:
        """If the process has just died this is lost; `Owner.down` follows."""
        if not self._owner.busy():
            self._heard_at = asyncio.get_running_loop().time()
        if self._writer is not None and not self._writer.is_closing():
            self._writer.write(pack(message, self._dialect.to_child, parts))

    def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()

    async def run(self) -> None:
        """Live, die, and live again, ever more slowly if it never comes up. A first start that fails is the last."""
        error: OctoError
        while True:
            try:
                await self._live()
            except OctoError as caught:
                error = caught
            except OSError as caught:  # no memory, or no process, for another child
                error = EngineFailed(f"the engine's worker cannot be started: {caught.strerror}.")
            came_up, self.ready = self.ready, False
            self.failures = 0 if came_up else self.failures + 1
            self.broken = None if came_up else error
            if not self.started.done():
                self.started.set_exception(error)
                return
            self._owner.down(error)
            await asyncio.sleep(pause_s(self.failures, first_s=0.05, limit_s=RESTART_LIMIT_S))

    async def _live(self) -> NoReturn:
        self._process = self._writer = None
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                await _to_its_end(self._spawn(theirs))
            reader, self._writer = await asyncio.open_unix_connection(sock=ours)
            self._writer.write(pack([to_plain(self._dialect.settings, self._settings)], self._dialect.to_child))
            await self._listen(reader)
            with contextlib.suppress(TimeoutError):  # let it end by itself, to know how it did
                async with asyncio.timeout(_LAST_WORDS_S):
                    await self._wait()
        finally:
            self.kill()
            if self._writer is not None:
                self._writer.close()
            else:
                ours.close()
            status = await _to_its_end(self._wait())
        raise self._ended(status)

    async def _spawn(self, theirs: socket.socket) -> None:
        self._process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            env=child_environment(self._settings.threads),
            start_new_session=True,  # Ctrl-C is for the node, which then ends its children itself
        )

    async def _wait(self) -> int:
        return await self._process.wait() if self._process is not None else 0

    async def _listen(self, reader: asyncio.StreamReader) -> None:
        """Hand on what the child says until it stops speaking. Raises EngineFailed if it hangs or talks nonsense."""
        buffer = FrameBuffer(self._dialect.to_node)
        loop = asyncio.get_running_loop()
        self._began_at = self._heard_at = loop.time()
        while True:
            began_at, look_s = loop.time(), self._owner.silence_limit_s / 4
            try:
                async with asyncio.timeout(look_s):
                    data = await reader.read(_READ_BYTES)
            except TimeoutError:
                # If this process stood still, what was said meanwhile is not read yet.
                self._heard_at += loop.time() - began_at - look_s
                self._check_alive(loop.time() - self._heard_at)
                continue
            except ConnectionError:
                return
            if not data:
                return
            self._heard_at = loop.time()
            try:
                for frame in buffer.feed(data):
                    self._hear(frame)
            except (EncodingInvalid, TypeError, ValueError):
                raise EngineFailed("the engine's worker sent a frame that makes no sense.") from None

    def _check_alive(self, silent_s: float) -> None:
        if not self.ready and silent_s > self._patience.limit_s(self.failures):
            raise EngineFailed(f"the model was not loaded after {silent_s:.0f} s.")
        if self.ready and self._owner.busy() and silent_s > self._owner.silence_limit_s:
            raise EngineFailed(f"the engine's worker was silent for {silent_s:.1f} s and was ended.")

    def _hear(self, frame: Frame) -> None:
        match frame.message:
            case ["alive"]:
                pass
            case ["ready", facts] if not self.ready:
                self.facts = from_plain(self._dialect.facts, facts)
                self.ready, self.broken = True, None
                self._patience.loaded(self._heard_at - self._began_at)
                if not self.started.done():
                    self.started.set_result(None)
                self._owner.up()
            case ["fail", str(code), str(message), str(next_step)] if not self.ready:
                kinds: dict[str, type[OctoError]] = {
                    ModelFileInvalid.code: ModelFileInvalid,
                    NodeMisconfigured.code: NodeMisconfigured,
                }
                raise kinds.get(code, EngineFailed)(message[:_WORDS_LIMIT], next_step=next_step[:_WORDS_LIMIT])
            case _ if self.ready:
                self._owner.hear(frame)
            case _:
                raise EncodingInvalid("unknown frame.")

    def _ended(self, status: int) -> OctoError:
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        if self.ready:
            return EngineFailed(f"the engine's worker ended ({how}).")
        return ModelFileInvalid(
            f"the engine's worker ended while loading the model ({how}).",
            next_step="Pull the model again; if it is whole, there may be too little memory.",
        )
