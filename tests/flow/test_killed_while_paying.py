"""kill -9 of client or provider at every step of a payment: opening, vouchers, settling, closing.

A first life without a death counts the steps; then each step gets a life that ends there. After each death the process
starts again in its folder, buys or serves a further task, and everything is settled: then chain and both books agree
to the last unit. Real processes, real libp2p, SQLite on disk, the embedded devnet chain with instant blocks.
"""

from __future__ import annotations

import signal

import pytest
from forks import Died, Forked, until
from street import CHALLENGE_S, Street, open_street
from trader import ANSWER, PRICE_IN, PRICE_OUT, TICK
from tripwire import Step

from market.channel import ChannelState
from market.money import cost

pytestmark = pytest.mark.processes

QUESTION = "Hi"


# ---- one life ----------------------------------------------------------------------------------------------------


def price(tokens: int) -> int:
    prompt = len(f"user: {QUESTION}\n")
    return cost(tokens=prompt, price_per_million=PRICE_IN) + cost(tokens=tokens, price_per_million=PRICE_OUT)


WHOLE = price(len(ANSWER))
PARTS = {0, price(0), price(TICK), price(2 * TICK), WHOLE}
"""What a task that was cut short may have cost: nothing, its input, some ticks, or all of it."""


async def buy(client: Forked) -> dict:
    """A task that works; a connection that just broke may need a moment."""
    answer: dict = {}

    async def works() -> bool:
        nonlocal answer
        answer = await client.call("buy", QUESTION)
        return "error" not in answer

    await until(works, every_s=0.1)
    assert answer["text"] == ANSWER
    return answer


async def live(street: Street, who: str, step: Step | None, *, then_lag_s: float = 0.0) -> list[Step]:
    """One customer's whole story, with the death of client or provider at `step`; the steps that there were. Who was
    dead gets the chain's first answers `then_lag_s` late."""
    name = f"alice-{next(street.lives)}"
    bob_had = await street.octo_of("bob")
    client = await street.customer(name)
    alice_had = await street.octo_of(name)
    mortal = client if who == "client" else street.payee
    tasks, steps = 1, []
    try:
        try:
            await mortal.call("arm", step)
            first = await client.call("buy", QUESTION)
            if "error" not in first:
                await both_books_agree(street, client, first["channel"])
            await end_channels(street, who, client)
            steps = await mortal.call("disarm")
            assert step is None, f"{step} was not reached: {first}"
        except Died:
            assert mortal.exit_code == -signal.SIGKILL
            await no_voucher_is_lost(street, name, who, client)
            street.chain_lag_s = then_lag_s
            if who == "client":
                client = await street.customer(name, funded=False)
            else:
                await street.reopen_shop()
            tasks, second = 2, await buy(client)
            await both_books_agree(street, client, second["channel"])
            await end_channels(street, who, client)
        paid = await add_up(street, name, client, alice_had=alice_had, bob_had=bob_had)
        assert paid - WHOLE in (PARTS if tasks == 2 else {0})
    finally:
        await client.kill()
    return steps


async def no_voucher_is_lost(street: Street, name: str, who: str, client: Forked) -> None:
    """What the client's books say it signed covers all that the provider took."""
    alice = await (street.books_on_disk(name) if who == "client" else client.call("books"))
    bob = await (street.books_on_disk("bob") if who == "provider" else street.payee.call("books"))
    for channel_id, theirs in bob.items():
        if channel_id in alice:
            mine = alice[channel_id]
            assert mine.paid >= theirs.paid, "the provider holds a voucher that the client does not know of"
            assert mine.receipts.size >= theirs.receipts.size


async def both_books_agree(street: Street, client: Forked, channel_id: bytes) -> None:
    """The last voucher brought the provider level with all that the client ever signed on the channel."""

    async def agree() -> bool:
        theirs, mine = (await street.payee.call("books"))[channel_id], (await client.call("books"))[channel_id]
        return (mine.paid, mine.receipts) == (theirs.paid, theirs.receipts)

    await until(agree)


async def end_channels(street: Street, who: str, client: Forked) -> None:
    """The mortal one ends them, so that this too can be cut short: a client asks for its deposit back and waits,
    a provider redeems and closes at once. Returns when all deposits are out and both books know."""
    if who == "provider":
        await street.payee.call("settle")
        await street.payee.call("close_as_payee")
    else:
        await client.call("ask_back")

    async def redeemed() -> bool:
        return await street.payee.call("unsettled") == 0

    async def over() -> bool:
        books = [await street.payee.call("books"), await client.call("books")]
        if await street.in_escrow():
            await street.pass_time(CHALLENGE_S + 1)
            return False
        return all(channel.state is ChannelState.CLOSED for channels in books for channel in channels.values())

    await until(redeemed)
    await until(over, every_s=0.1)


async def add_up(street: Street, name: str, client: Forked, *, alice_had: int, bob_had: int) -> int:
    """What was paid: the same in the client's books, the provider's, and on the chain, to the last unit."""
    spent, earned = alice_had - await street.octo_of(name), await street.octo_of("bob") - bob_had
    assert spent == earned
    alice, bob = await client.call("books"), await street.payee.call("books")
    assert sum(channel.paid for channel in alice.values()) == spent
    assert sum(channel.paid for channel in bob.values() if channel.id in alice) == earned
    for channel_id in alice:
        on_chain = await street.channels.channel(channel_id)
        assert on_chain.closed
        assert on_chain.redeemed == alice[channel_id].paid
    return spent


# ---- the walk ----------------------------------------------------------------------------------------------------


BY_THE_CLOCK = ("tokens", "queued", "settlement")
"""How many messages with tokens there are, and how often the settlement's notes are written, is a matter of time."""


def told_apart(steps: list[Step]) -> list[Step]:
    """Each step once, that is sure to come again in the next life."""
    return [s for s in dict.fromkeys(steps) if s[1] == 1 or not s[0].endswith(BY_THE_CLOCK)]


def is_telling(step: Step) -> bool:
    """What was done just before one step was also done just after the last, but for a transaction, which the chain has
    or has not."""
    return not step[0].startswith("before") or step[0] == "before a transaction"


@pytest.mark.timeout(900)
@pytest.mark.parametrize("who", ["client", "provider"])
async def test_a_death_at_any_step_of_a_payment_loses_nothing_and_pays_nothing_twice(tmp_path, who):
    async with open_street(tmp_path) as street:
        steps = [step for step in told_apart(await live(street, who, None)) if is_telling(step)]
        assert len(steps) > 20
        for step in steps:
            await live(street, who, step)


async def test_who_died_before_noting_that_a_channel_is_closing_knows_it_before_it_pays_again(tmp_path):
    """The chain's first answers come late: whoever did not wait would sign a voucher that nobody can redeem."""
    async with open_street(tmp_path) as street:
        await live(street, "client", ("before saving: closing channel", 1), then_lag_s=0.5)


@pytest.mark.heavy
@pytest.mark.timeout(900)
@pytest.mark.parametrize("who", ["client", "provider"])
async def test_a_death_just_before_any_step_of_a_payment_too(tmp_path, who):
    async with open_street(tmp_path) as street:
        for step in told_apart(await live(street, who, None)):
            if not is_telling(step):
                await live(street, who, step)
