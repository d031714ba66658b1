"""How sources stand during one pull: who delivers, who waits, who is out, and why.

Lives here: strikes, pauses, blame, speeds, and asking several sources for one block. A source that sends wrong bytes is
out at once and for good; one that fails again and again is given up; one that is busy is left alone for a while.
Knows sources by their port only, and no store.
"""

from __future__ import annotations

import asyncio
import enum
from collections import deque
from collections.abc import Callable, Mapping, Sequence

import structlog

from inference.models.cid import BLOCK_LIMIT_BYTES, Cid, check_block
from inference.models.progress import Rate
from market.errors import BlockInvalid, ContentUnavailable, OctoError
from market.ports import ContentSource
from market.values import value

_log = structlog.get_logger()

Blame = Callable[[str, str], None]
"""Called with a source's name and what it did when it sent wrong bytes, for whoever remembers that beyond one pull."""

_HEDGE_S = 1.0
"""A source that needs longer for a block gets company: inner nodes hold up everything behind them."""
_BLOCK_ROUNDS = 3


@value
class Patience:
    """`leaf_timeout_s` for a leaf of at most 2 MiB: 1 MiB in a minute is 17 kB/s, and 100 MB would take 95 minutes.

    After `strikes` failures in a row a source is given up. It waits `pause_s` after the first and twice as long after
    each further one, at most `longest_pause_s`, give or take half: many that lost one provider must not come back in
    one moment. `busy` times in a row it may say that it is busy.
    """

    leaf_timeout_s: float = 60.0
    strikes: int = 5
    pause_s: float = 0.5
    longest_pause_s: float = 30.0
    busy: int = 30


class Way(enum.Enum):
    """How leaves come from a source: ranges of the file, or block by block. Found out by trying."""

    RANGES = "ranges"
    BLOCKS = "blocks"


class Standing:
    """One source in one pull. `proven`: leaves have come this `way`."""

    def __init__(self, source: ContentSource) -> None:
        self.source = source
        self.name = source.name
        self.way = Way.RANGES
        self.proven = False
        self.rate: Rate | None = None
        self.strikes = 0
        self.busy = 0
        self.paused_until = 0.0

    def speed(self, now: float) -> float:
        """Bytes per second of late; 0 if nothing has come yet."""
        return self.rate.per_s(now) if self.rate else 0.0


class Crowd:
    """All sources of one pull. `clock` gives seconds, `jitter` numbers in [0, 1)."""

    def __init__(
        self,
        cid: str,
        sources: Sequence[ContentSource],
        *,
        patience: Patience,
        clock: Callable[[], float],
        jitter: Callable[[], float],
        blame: Blame,
    ) -> None:
        self.live = [Standing(source) for source in sources]
        self._cid = cid
        self._patience = patience
        self.clock = clock
        self._jitter = jitter
        self._blame = blame
        self._reasons: dict[str, OctoError] = {}

    def is_live(self, standing: Standing) -> bool:
        return standing in self.live

    def speeds(self) -> Mapping[str, float]:
        """Bytes per second of all that have sent any."""
        now = self.clock()
        return {standing.name: standing.speed(now) for standing in self.live if standing.rate}

    def started(self, standing: Standing) -> None:
        standing.rate = standing.rate or Rate(self.clock())

    def delivered(self, standing: Standing, count: int) -> None:
        """`count` verified bytes came."""
        standing.strikes = standing.busy = 0
        standing.proven = True
        if standing.rate:
            standing.rate.add(count, self.clock())

    def failed(self, standing: Standing, error: OctoError) -> None:
        """A source did not deliver: out with it if it lied, else a pause, and a strike unless it was only busy."""
        if not self.is_live(standing):
            return  # what its other streams say now is nothing new
        self._reasons[standing.name] = error
        if isinstance(error, BlockInvalid):
            self._drop(standing, error)
            self._blame(standing.name, error.message)
            return
        now, patience = self.clock(), self._patience
        if now < standing.paused_until:
            return  # one outage breaks all streams to a source: that is one failure
        wanted = getattr(error, "retry_after_s", None)
        if isinstance(wanted, int | float):
            standing.busy += 1
            pause = min(max(wanted, patience.pause_s), patience.longest_pause_s) * (1 + self._jitter() / 4)
        else:
            standing.strikes += 1
            pause = min(patience.pause_s * 2.0 ** (standing.strikes - 1), patience.longest_pause_s)
            pause *= 0.5 + self._jitter()
        standing.paused_until = now + pause
        if standing.strikes >= patience.strikes or standing.busy > patience.busy:
            self._drop(standing, error)

    def nobody(self) -> ContentUnavailable:
        """What to raise when nobody is left."""
        said = "; ".join(f"{name}: {error.message}" for name, error in self._reasons.items())
        return ContentUnavailable(
            f"No source delivers {self._cid}. {said or 'There is no source at all.'}",
            next_step="Try again when a provider that has the model is online; what has arrived is kept.",
        )

    async def block(self, cid: Cid) -> bytes:
        """One block that hashes to `cid`, from whoever has it first. Raises ContentUnavailable."""
        rounds, waited = 0, 0
        while True:
            data = await self._from_anyone(cid)
            if data is not None:
                return data
            busy = [w for s in self.live if (w := _wait_of(self._reasons.get(s.name))) is not None]
            if busy and waited < self._patience.busy:
                waited += 1
                await asyncio.sleep(min(max(min(busy), self._patience.pause_s), self._patience.longest_pause_s))
                continue
            rounds += 1
            if rounds >= _BLOCK_ROUNDS or not self.live:
                raise self.nobody()
            await asyncio.sleep(self._patience.pause_s * rounds * (0.5 + self._jitter()))

    async def _from_anyone(self, cid: Cid) -> bytes | None:
        """The quickest first; the next joins in when one fails or takes its time."""
        now = self.clock()
        waiting = deque(sorted(self.live, key=lambda standing: (standing.strikes, -standing.speed(now))))
        asked: dict[asyncio.Task[bytes], Standing] = {}
        try:
            while asked or waiting:
                if waiting:
                    standing = waiting.popleft()
                    asked[asyncio.create_task(checked_block(standing.source, cid))] = standing
                patience_s = _HEDGE_S if waiting else None
                done, _ = await asyncio.wait(asked, timeout=patience_s, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    standing = asked.pop(task)
                    try:
                        return task.result()
                    except BlockInvalid as error:
                        self.failed(standing, error)
                    except OctoError as error:
                        self._reasons[standing.name] = error
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        return None

    def _drop(self, standing: Standing, error: OctoError) -> None:
        if standing in self.live:
            self.live.remove(standing)
            _log.warning(
                "content_source_dropped", cid=self._cid, source=standing.name, code=error.code, why=error.message
            )


async def checked_block(source: ContentSource, cid: Cid) -> bytes:
    """A block from one source. Raises BlockInvalid if it is not what `cid` says."""
    data = await source.block(str(cid))
    if len(data) > BLOCK_LIMIT_BYTES:
        raise BlockInvalid(f"{source.name} sent more than {BLOCK_LIMIT_BYTES} bytes as one block.")
    try:
        check_block(cid, data)
    except BlockInvalid as error:
        raise BlockInvalid(f"{source.name} sent {error.message}") from None
    return data


def _wait_of(error: OctoError | None) -> float | None:
    wanted = getattr(error, "retry_after_s", None)
    return float(wanted) if isinstance(wanted, int | float) else None
