"""Who shall do it: which offers can serve a task, in which order, and why each other one cannot.

Pure: `choose` decides on values alone. Policies compose by wrapping.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import field
from typing import Protocol

from market.identity import short
from market.money import cost, format_octo
from market.offer import CheckedOffer, ModelOffer
from market.task import Mode, Privacy, TaskId
from market.values import value
from market.work import ONE_BY_ONE, Work

_LACKS: Mapping[str, str] = {
    "bias": "biases no tokens (logit_bias)",
    "grammar": "keeps no answer to a schema (response_format, tools)",
    "logprobs": "gives no log probabilities",
}


@value
class Needs:
    """What a task needs of a provider. `own` are the peers that may see `private` prompts; `unvetted` maps
    peers that may see `public` ones only to the reason (no stake, say). `features` must be the engine's."""

    task: TaskId
    model: str
    tokens_in: int
    max_tokens: int
    mode: Mode
    privacy: Privacy
    rail: str
    own: frozenset[str]
    work: Work = Work.CHAT
    features: frozenset[str] = frozenset()
    unvetted: Mapping[str, str] = field(default_factory=dict)


@value
class Candidate:
    offer: CheckedOffer
    model: ModelOffer
    max_cost: int
    standing: Mapping[str, float]

    @property
    def peer(self) -> str:
        return self.offer.offer.peer


@value
class Choice:
    """`ranked`, best first; `refused` maps every other peer to the reason; `because` explains the first."""

    ranked: tuple[Candidate, ...]
    refused: Mapping[str, str]
    because: str


class Policy(Protocol):
    name: str

    def score(self, candidate: Candidate, needs: Needs) -> float:
        """Lower is better."""


class Cheapest:
    name = "cheapest"

    def score(self, candidate: Candidate, needs: Needs) -> float:  # noqa: ARG002 - the port's shape
        return float(candidate.max_cost)


FIRST_TOKEN_MS = 200.0
"""Of a peer that says nothing of it, and that nobody has measured."""


class Fastest:
    """Expected seconds to the whole answer: what we measured of the peer, else what it says of itself."""

    name = "fastest"

    def score(self, candidate: Candidate, needs: Needs) -> float:
        rate = candidate.standing.get("tokens_per_s") or float(candidate.model.tokens_per_s or 1)
        wait = candidate.standing.get("first_token_ms") or float(candidate.model.first_token_ms or FIRST_TOKEN_MS)
        return wait / 1000 + needs.max_tokens / rate


class Reliable:
    """Wraps a policy: a peer that failed lately costs more, in proportion."""

    def __init__(self, inner: Policy) -> None:
        self.name = inner.name
        self._inner = inner

    def score(self, candidate: Candidate, needs: Needs) -> float:
        return self._inner.score(candidate, needs) * (1 + 9 * candidate.standing.get("failure_rate", 0.0))


def choose(
    needs: Needs, offers: Sequence[CheckedOffer], standing: Mapping[str, Mapping[str, float]], policy: Policy
) -> Choice:
    ranked: list[tuple[float, bool, bytes, Candidate]] = []
    refused: dict[str, str] = {}
    for checked in offers:
        peer = checked.offer.peer
        model = next((m for m in checked.offer.models if m.model == needs.model), None)
        reason = _why_not(needs, checked, model)
        if reason is not None or model is None:
            refused[peer] = reason or "does not serve this model"
            continue
        candidate = Candidate(
            offer=checked, model=model, max_cost=_max_cost(needs, model), standing=standing.get(peer, {})
        )
        # Of equal scores those that need not load the model first; these are spread over peers by task, so that two
        # equal providers share the work.
        spread = hashlib.sha256(needs.task + peer.encode()).digest()
        ranked.append((policy.score(candidate, needs), not model.warm, spread, candidate))
    ranked.sort(key=lambda entry: entry[:3])
    candidates = tuple(candidate for _, _, _, candidate in ranked)
    return Choice(ranked=candidates, refused=refused, because=_because(candidates, policy))


def _why_not(needs: Needs, checked: CheckedOffer, model: ModelOffer | None) -> str | None:
    offer = checked.offer
    if model is None:
        return "does not serve this model"
    if needs.privacy is Privacy.PRIVATE and offer.peer not in needs.own:
        return "is not one of your own nodes, and the task is private"
    if needs.privacy is Privacy.CONFIDENTIAL and offer.peer not in needs.own:
        return "has no attested enclave, and the task is confidential"
    if needs.privacy not in offer.privacy and offer.peer not in needs.own:
        return f"does not take {needs.privacy} tasks"
    if needs.privacy is not Privacy.PUBLIC and offer.peer not in needs.own and offer.peer in needs.unvetted:
        return needs.unvetted[offer.peer]
    if needs.work not in model.works:
        return f"does not {'draw' if needs.work is Work.IMAGE else needs.work} with this model"
    if needs.mode not in model.modes:
        return f"does not serve {needs.mode} mode"
    if lacking := sorted(needs.features.difference(model.features)):
        return f"its engine {' and '.join(_LACKS.get(feature, f'has no {feature}') for feature in lacking)}"
    if needs.rail not in offer.rails:
        return f"is paid over {', '.join(offer.rails) or 'nothing'}, not {needs.rail}"
    room = needs.tokens_in + (needs.max_tokens if needs.work is Work.CHAT else 0)  # only a chat shares one context
    if room > model.context and needs.work not in ONE_BY_ONE:
        return f"its context is {model.context} tokens, {room} are needed"
    return None


def _max_cost(needs: Needs, model: ModelOffer) -> int:
    price_in, price_out = model.prices(needs.mode)
    return cost(tokens=needs.tokens_in, price_per_million=price_in) + cost(
        tokens=needs.max_tokens, price_per_million=price_out
    )


def _because(ranked: tuple[Candidate, ...], policy: Policy) -> str:
    if not ranked:
        return "nobody can serve it"
    first = ranked[0]
    return f"{policy.name} of {len(ranked)}: {short(first.peer)} at most {format_octo(first.max_cost)}"
