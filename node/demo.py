"""What `make demo` shows: one conversation over a small market, from the offers to balances that add up.

Lives here: the story and its checks. Every figure on the screen comes from a running node or from a
downloaded receipt that was verified here, offline; the story fails if one of them contradicts another.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.rule import Rule
from rich.text import Text

from market.errors import EncodingInvalid
from market.quote import Quote
from market.receipt import Receipt
from market.task import ChatMessage
from node.cli.examination import findings_table, summary
from node.cli.exits import BROKEN, FAILED, OK
from node.cli.remote import Remote
from node.cli.show import bare, facts, octo, print_json, printable, screen, size, table
from node.cli.streaming import Wrapped
from node.cli.tokenizing import tokenizer_in
from node.crew import Member
from node.devnet import Devnet
from verifier.examination import Examination, examine
from verifier.receipt_file import ReceiptFile, parse

PROMPTS = ("What is the capital of Japan?", "What can I see there?", "What can I eat there?")
_MAX_TOKENS = 96
_SAMPLING = {"temperature": 0.2, "seed": 1}
_SETTLE_S = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One bought answer: what was said, the `octo` facts of the API, and its receipt, checked."""

    prompt: str
    answer: str
    octo: dict[str, Any]
    file: ReceiptFile
    data: bytes
    receipt: Receipt
    quote: Quote
    examination: Examination


class Demo:
    """`run` is blocking: it reads streams and prints."""

    def __init__(self, devnet: Devnet, *, as_json: bool) -> None:
        self._devnet = devnet
        self._as_json = as_json
        self._out = Console(quiet=True) if as_json else screen()
        self._out.width = min(self._out.width, 100)
        self._gateway = devnet.client.remote()
        self._network = str(self._gateway.get("/api/v1/status")["network"])
        self._names = {member.peer_id: member.name for member in (*devnet.providers, devnet.client)}
        self._broken: list[str] = []

    def run(self) -> int:
        """The exit code: OK only if every receipt holds and all sums agree."""
        before = self._balances()
        self._show_market()
        self._show_offers()
        turns = self._converse()
        self._check_receipts(turns)
        after = self._settled(before, turns)
        self._show_money(before, after, turns)
        if self._as_json:
            print_json(self._facts(turns, before, after))
        self._out.print()
        if self._broken:
            for fault in self._broken:
                self._out.print(Text(f"✗ {fault}", style="bold red"))
            return BROKEN if any(not turn.examination.ok for turn in turns) else FAILED
        self._out.print(Text("✓ Every receipt holds, and the money adds up.", style="bold green"))
        return OK

    # ---- the market ----

    def _chapter(self, number: int, title: str) -> None:
        self._out.print()
        self._out.print(Rule(Text(f" {number}  {title} ", style="bold"), align="left", style="dim"))
        self._out.print()

    def _show_market(self) -> None:
        self._chapter(1, f"A market of {len(self._names)} processes")
        rows = [
            (m.name, f"…{m.peer_id[-8:]}", m.pid, self._origin(m))
            for m in (*self._devnet.providers, self._devnet.client)
        ]
        self._out.print(table("NODE", "PEER", "PID", "MODEL", rows=rows, right=("PID",)))

    def _origin(self, member: Member) -> str:
        if member.model is None:
            return "none: it only buys"
        pulled = pulled_blocks(member)
        if pulled is None:
            return "its own file"
        blocks, count = pulled
        return f"pulled by CID: {blocks} blocks, {size(count)}, each verified"

    def _show_offers(self) -> None:
        self._chapter(2, "What the gateway hears on the mesh")
        rows: list[tuple[object, ...]] = []
        for offer in self._gateway.get("/api/v1/offers")["offers"]:
            rows += [
                (self._who(offer["peer"]), model["name"], bare(model["price_in"]), bare(model["price_out"]),
                 model["context"], model["tokens_per_s"], offer["slots"])
                for model in offer["models"]
            ]  # fmt: skip
        columns = ("PROVIDER", "MODEL", "IN", "OUT", "CONTEXT", "TOK/S", "SLOTS")
        self._out.print(table(*columns, rows=sorted(rows, key=str), right=("IN", "OUT", "CONTEXT", "TOK/S", "SLOTS")))
        self._out.print(Text("Prices are OCTO per million tokens. Each offer is signed, and expires.", style="dim"))

    # ---- the conversation ----

    def _converse(self) -> list[Turn]:
        self._chapter(3, "A conversation through the gateway's OpenAI API")
        turns: list[Turn] = []
        messages: list[dict[str, str]] = []
        buying = Remote(self._devnet.client.url, self._devnet.api_key)
        for prompt in PROMPTS:
            messages.append({"role": "user", "content": prompt})
            self._out.print(Text.assemble(("You      ", "bold cyan"), prompt))
            text, said = self._ask(buying, messages)
            turn = self._turn(buying, messages, text, said)
            messages.append({"role": "assistant", "content": text})
            turns.append(turn)
            self._show_deal(turn)
        return turns

    def _ask(self, buying: Remote, messages: list[dict[str, str]]) -> tuple[str, dict[str, Any]]:
        request = {
            "model": self._devnet.model, "messages": messages, "max_tokens": _MAX_TOKENS, **_SAMPLING,
            "stream": True, "stream_options": {"include_usage": True},
        }  # fmt: skip
        text = ""
        said: dict[str, Any] = {}
        self._out.print(Text("Model    ", style="bold magenta"), end="")
        writer = Wrapped(self._out, indent=9)
        for event in buying.stream("/v1/chat/completions", request):
            for choice in event["choices"]:
                piece = choice["delta"].get("content") or ""
                writer.write(piece)
                text += piece
            said = event.get("octo") or said
        writer.end()
        return text, said

    def _turn(self, buying: Remote, messages: list[dict[str, str]], answer: str, said: dict[str, Any]) -> Turn:
        data = buying.get_bytes(f"/api/v1/receipts/{said['receipt']}")
        file = parse(data)
        receipt, quote = file.receipt.read(), file.quote.read()
        tokenizer = tokenizer_in(self._devnet.client.data_dir, receipt.model)  # pulled by the gateway, by CID
        examination = examine(
            file,
            provider=said["provider"],
            client=self._devnet.client.peer_id,
            network=self._network,
            answer=answer,
            prompt_ids=tokenizer.render([ChatMessage(**message) for message in messages]),
            token_bytes=tokenizer.token_bytes,
        )
        self._expect(file.receipt.cid() == said["receipt"], "the downloaded receipt is not the one that was named")
        self._expect(receipt.amount == said["amount"], "the API names another price than the receipt")
        self._expect(examination.ok, f"receipt {said['receipt']} does not hold")
        return Turn(
            prompt=messages[-1]["content"],
            answer=answer,
            octo=said,
            file=file,
            data=data,
            receipt=receipt,
            quote=quote,
            examination=examination,
        )

    def _show_deal(self, turn: Turn) -> None:
        quote, receipt, said = turn.quote, turn.receipt, turn.octo
        who, steps = self._who(said["provider"]), receipt.seq + 1
        channel = next(c for c in self._gateway.get("/api/v1/wallet")["channels"] if c["id"] == receipt.channel.hex())
        rows: list[tuple[str, object]] = [
            ("cfp", f"to {who}: {quote.tokens_in} tokens in, at most {quote.max_tokens} out"),
            ("propose", f"{bare(quote.price_in)} in, {octo(quote.price_out)} out per million;"
                        f" at most {octo(quote.max_cost())}, signed"),
            ("accept", f"with a voucher of {octo(quote.cost_in())} for the input"),
            ("served", f"{receipt.tokens_out} tokens, {steps} receipt{'s' if steps > 1 else ''};"
                       f" the first after {said['first_token_ms']} ms, all after {said['total_ms']} ms"),
            ("price", f"{octo(receipt.amount)} for {receipt.tokens_in} in and {receipt.tokens_out} out"),
            ("voucher", f"the channel's newest says {octo(channel['paid'])} in total, for {channel['leaves']} steps"),
            ("why", self._named(said["because"])),
        ]  # fmt: skip
        rows += [("not", f"{self._who(peer)}: {self._named(why)}") for peer, why in said["not_chosen"].items()]
        rows += [("failed", f"{self._who(peer)}: {self._named(why)}") for peer, why in said["failed"].items()]
        rows.append(("receipt", Text(said["receipt"], style="cyan")))
        self._out.print(Panel(facts(rows), border_style="dim", expand=False))
        self._out.print()

    # ---- the receipts ----

    def _check_receipts(self, turns: list[Turn]) -> None:
        self._chapter(4, "The receipts, checked offline from their files")
        first = turns[0]
        self._out.print(findings_table(first.examination, one_line=True))
        self._out.print()
        for number, turn in enumerate(turns, start=1):
            self._out.print(Text.assemble((f"Receipt {number}  ", "bold"), summary(turn.examination)))
        self._out.print()
        self._tamper(first)

    def _tamper(self, turn: Turn) -> None:
        """Checks that cannot fail prove nothing: change one letter, and one bit, and see them fail."""
        bad = examine(turn.file, answer=flipped(turn.answer))
        wrong = next((finding.detail for finding in bad.findings if finding.verdict == "broken"), None)
        self._expect(wrong is not None, "an answer with one changed letter still passed")
        self._out.print(Text(f"One letter of the answer changed: {printable(wrong or 'NOT FOUND')}", style="dim"))
        flip = bytearray(turn.data)
        flip[turn.data.index(turn.file.receipt.signature) + 7] ^= 1
        try:
            broken = [f.detail for f in examine(parse(bytes(flip))).findings if f.verdict == "broken"]
            caught = broken[0] if broken else None
        except EncodingInvalid as error:
            caught = error.message
        self._expect(caught is not None, "a receipt file with one flipped bit still passed")
        self._out.print(Text(f"One bit of the signature flipped: {printable(caught or 'NOT FOUND')}", style="dim"))

    # ---- the money ----

    def _balances(self) -> dict[str, dict[str, int]]:
        return {
            member.name: member.remote().get("/api/v1/wallet")["balances"]
            for member in (*self._devnet.providers, self._devnet.client)
        }

    def _settled(self, before: dict[str, dict[str, int]], turns: list[Turn]) -> dict[str, dict[str, int]]:
        """Balances once the last voucher has arrived: it travels beside the answer, a few milliseconds later."""
        owed = sum(turn.receipt.amount for turn in turns)
        deadline = time.monotonic() + _SETTLE_S
        while True:
            after = self._balances()
            earned = sum(_change(before, after, member.name, "earned") for member in self._devnet.providers)
            if earned == owed or time.monotonic() > deadline:
                return after
            time.sleep(0.05)

    def _show_money(
        self, before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], turns: list[Turn]
    ) -> None:
        self._chapter(5, "The money: vouchers on the local ledger")
        client = self._devnet.client.name
        channels = self._gateway.get("/api/v1/wallet")["channels"]
        rows = [
            (f"{client} → {self._who(c['peer'])}", c["id"][:12], bare(c["deposit"]), bare(c["paid"]), c["leaves"])
            for c in channels
        ]
        self._out.print(table("CHANNEL", "ID", "DEPOSIT", "PAID", "FOR", rows=rows, right=("DEPOSIT", "PAID", "FOR")))
        self._out.print(Text("One signed voucher a step; FOR counts the quotes and receipts it pays for.", style="dim"))
        self._out.print()
        balances = []
        for name in after:
            what, sign = ("spent", -1) if name == client else ("earned", 1)
            was, now = (sign * book[name][what] for book in (before, after))
            balances.append((name, bare(was), bare(now), _signed(now - was)))
        spent = _change(before, after, client, "spent")
        earned = sum(_change(before, after, member.name, "earned") for member in self._devnet.providers)
        billed = sum(turn.receipt.amount for turn in turns)
        balances.append(("sum", "", "", _signed(earned - spent)))
        self._out.print(table("OCTO", "BEFORE", "AFTER", "CHANGE", rows=balances, right=("BEFORE", "AFTER", "CHANGE")))
        self._expect(spent == earned, f"the client spent {octo(spent)}, the providers earned {octo(earned)}")
        self._expect(spent == billed, f"the client spent {octo(spent)}, the receipts say {octo(billed)}")
        self._expect(billed > 0, "nothing was paid")
        self._out.print()
        self._out.print(f"Spent {octo(spent)} = earned {octo(earned)} = {len(turns)} receipts of {octo(billed)}.")

    # ---- small things ----

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._broken.append(otherwise)

    def _who(self, peer: str) -> str:
        return self._names.get(peer, peer[-8:])

    def _named(self, text: str) -> str:
        """Peers in a sentence by the names of this devnet."""
        for peer, name in self._names.items():
            for word in (peer, f"…{peer[-8:]}", peer[-8:]):
                text = text.replace(word, name)
        return text

    def _facts(self, turns: list[Turn], before: Any, after: Any) -> dict[str, Any]:
        return {
            "ok": not self._broken,
            "broken": self._broken,
            "devnet": {key: given for key, given in self._devnet.facts().items() if key != "api_key"},
            "turns": [{"prompt": t.prompt, "answer": t.answer, "ok": t.examination.ok, **t.octo} for t in turns],
            "balances": {"before": before, "after": after},
        }


def pulled_blocks(member: Member) -> tuple[int, int] | None:
    """(blocks, bytes) that a node's log says it pulled and verified; None if it pulled nothing."""
    blocks = verified = 0
    with member.log.open(errors="replace") as log:
        for line in log:
            if "event=blocks_verified" in line:
                fields = dict(part.split("=", 1) for part in line.split() if "=" in part)
                blocks, verified = blocks + int(fields["blocks"]), verified + int(fields["bytes"])
    return (blocks, verified) if blocks else None


def flipped(text: str) -> str:
    """The text with its first letter changed."""
    return ("A" if text[:1] != "A" else "B") + text[1:]


def _change(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]], name: str, what: str) -> int:
    return after[name][what] - before[name][what]


def _signed(amount: int) -> str:
    return f"+{bare(amount)}" if amount > 0 else bare(amount)
