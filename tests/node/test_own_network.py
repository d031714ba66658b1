"""A node that serves is its own first choice, for nothing, and without leaving the process."""

import asyncio

from market.message import Cancel
from market.offer import ModelOffer, Offer, Tier, check_offer, sign_offer
from market.task import Mode, Privacy, TaskId
from market.testing import FixedClock, MemoryMesh, Party
from node.own_network import OwnNetwork

OCTO = 10**18


def offer_of(party, clock):
    model = ModelOffer(
        model="bafymodel", weights="bafyweights", name="toy", context=64, price_in=OCTO, price_out=OCTO,
        modes=(Mode.REALTIME,), engine="scripted/1", tokens_per_s=1,
    )  # fmt: skip
    offer = Offer(
        network="test", peer=party.peer, seq=1, issued_ms=clock.now_ms(), expires_ms=clock.now_ms() + 9000,
        tier=Tier.CONSUMER, slots=1, models=(model,), privacy=(Privacy.SHARED,), rails=("memory/1",), addresses=(),
        content=(), isolation="none", binding=party.signed_binding,
    )  # fmt: skip
    return sign_offer(offer, party.key)


async def test_our_own_offer_is_free_to_us_and_costs_others_what_it_says():
    clock, me, other = FixedClock(), Party("me"), Party("other")
    mesh = MemoryMesh(clock)
    mesh.announce(offer_of(other, clock))
    own = check_offer(offer_of(me, clock), network="test", now_ms=clock.now_ms())
    network = OwnNetwork(mesh.join(me.peer, None), serve=None, own_offer=lambda: own, clock=clock)
    to_buy = {checked.offer.peer: checked.offer.models[0].price_out for checked in network.to_buy_from()}
    told = {checked.offer.peer: checked.offer.models[0].price_out for checked in network.offers()}
    assert to_buy == {me.peer: 0, other.peer: OCTO}
    assert told == {me.peer: OCTO, other.peer: OCTO}


async def test_a_task_of_our_own_stays_in_the_process_and_a_failure_in_it_is_seen():
    clock, me = FixedClock(), Party("me")
    heard = asyncio.Queue()

    async def serve(conversation):
        heard.put_nowait((conversation.peer, (await conversation.receive(5)).body))
        raise RuntimeError("a bug")

    network = OwnNetwork(MemoryMesh(clock).join(me.peer, None), serve=serve, own_offer=lambda: None, clock=clock)
    conversation = await network.open_conversation(me.peer, TaskId(bytes(32)))
    await conversation.send(Cancel(reason="x"))
    assert await asyncio.wait_for(heard.get(), 60) == (me.peer, Cancel(reason="x"))
    await network.aclose()
