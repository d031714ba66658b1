"""What `make demo` shows: one conversation over a small market, from the offers to balances that add up.

Lives here: the story and its checks. Every figure on the screen comes from a running node or from a
downloaded receipt that was verified here, offline; the story fails if one of them contradicts another.
"""

from __future__ import annotations

from typing import Any

from rich.panel import Panel
from rich.text import Text

from market.errors import EncodingInvalid
from market.task import ChatMessage
from node.cli.examination import findings_table, summary
from node.cli.exits import BROKEN, FAILED, OK
from node.cli.remote import Remote
from node.cli.show import bare, facts, octo, print_json, printable, size
from node.cli.streaming import Wrapped
from node.cli.tokenizing import tokenizer_in
from node.crew import Member
from node.demo_ledger import LedgerMoney
from node.devnet import Devnet
from node.stage import Stage, Turn
from verifier.examination import examine
from verifier.receipt_file import parse

PROMPTS = ("What is the capital of Japan?", "What can I see there?", "What can I eat there?")
_MAX_TOKENS = 96
_SAMPLING = {"temperature": 0.2, "seed": 1}


class Demo:
    """`run` is blocking: it reads streams and prints."""

    def __init__(self, devnet: Devnet, *, as_json: bool) -> None:
        self._devnet = devnet
        self._as_json = as_json
        self._stage = Stage(devnet, quiet=as_json)
        self._out = self._stage.out
        self._gateway = devnet.client.remote()
        self._network = str(self._gateway.get("/api/v1/status")["network"])

    def run(self) -> int:
        """The exit code: OK only if every receipt holds and all sums agree."""
        money = self._money()
        self._show_market()
        money.show_place()
        self._show_offers()
        turns = self._converse(money)
        self._check_receipts(turns)
        money.settle(turns)
        money.show(turns)
        broken = self._stage.broken
        if self._as_json:
            print_json(self._facts(turns, money))
        self._out.print()
        if broken:
            for fault in broken:
                self._out.print(Text(f"✗ {fault}", style="bold red"))
            return BROKEN if any(not turn.examination.ok for turn in turns) else FAILED
        where = "" if self._devnet.chain is None else ", on the chain and in the books"
        self._out.print(Text(f"✓ Every receipt holds, and the money adds up{where}.", style="bold green"))
        return OK

    def _money(self) -> LedgerMoney:
        if self._devnet.chain is None:
            return LedgerMoney(self._stage)
        from node.demo_chain import ChainMoney
        from node.onlooker import Onlooker

        return ChainMoney(self._stage, self._devnet.chain, Onlooker(self._devnet.chain))

    # ---- the market ----

    def _show_market(self) -> None:
        count, chain = len(self._devnet.providers) + 1, " and a chain" if self._devnet.chain is not None else ""
        self._stage.chapter(f"A market of {count} processes{chain}")
        rows: list[tuple[object, ...]] = [
            (m.name, f"…{m.peer_id[-8:]}", m.pid, self._origin(m))
            for m in (*self._devnet.providers, self._devnet.client)
        ]
        self._stage.show("NODE", "PEER", "PID", "MODEL", rows=rows, right=("PID",))

    def _origin(self, member: Member) -> str:
        if member.model is None:
            return "none: it only buys"
        pulled = pulled_blocks(member)
        if pulled is None:
            return "its own file"
        blocks, count = pulled
        return f"pulled by CID: {blocks} blocks, {size(count)}, each verified"

    def _show_offers(self) -> None:
        self._stage.chapter("What the gateway hears on the mesh")
        rows: list[tuple[object, ...]] = []
        for offer in self._gateway.get("/api/v1/offers")["offers"]:
            rows += [
                (self._stage.who(offer["peer"]), model["name"], bare(model["price_in"]), bare(model["price_out"]),
                 model["context"], model["tokens_per_s"], offer["slots"])
                for model in offer["models"]
            ]  # fmt: skip
        columns = ("PROVIDER", "MODEL", "IN", "OUT", "CONTEXT", "TOK/S", "SLOTS")
        self._stage.show(
            *columns, rows=sorted(rows, key=str), right=columns[2:],
            below="Prices are OCTO per million tokens. Each offer is signed, and expires.",
        )  # fmt: skip

    # ---- the conversation ----

    def _converse(self, money: LedgerMoney) -> list[Turn]:
        self._stage.chapter("A conversation through the gateway's OpenAI API")
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
            self._show_deal(turn, money.opened(turn.receipt.channel))
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
            prompt_ids=tokenizer.render([ChatMessage(role=said["role"], content=said["content"]) for said in messages]),
            token_bytes=tokenizer.token_bytes,
        )
        self._stage.expect(
            file.receipt.cid() == said["receipt"], "the downloaded receipt is not the one that was named"
        )
        self._stage.expect(receipt.amount == said["amount"], "the API names another price than the receipt")
        self._stage.expect(examination.ok, f"receipt {said['receipt']} does not hold")
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

    def _show_deal(self, turn: Turn, opened: str | None) -> None:
        quote, receipt, said = turn.quote, turn.receipt, turn.octo
        who, steps = self._stage.who(said["provider"]), receipt.seq + 1
        channel = next(c for c in self._gateway.get("/api/v1/wallet")["channels"] if c["id"] == receipt.channel.hex())
        rows: list[tuple[str, object]] = [
            ("cfp", f"to {who}: {quote.tokens_in} tokens in, at most {quote.max_tokens} out"),
            ("propose", f"{bare(quote.price_in)} in, {octo(quote.price_out)} out per million;"
                        f" at most {octo(quote.max_cost())}, signed"),
            *([("channel", opened)] if opened else []),
            ("accept", f"with a voucher of {octo(quote.cost_in())} for the input"),
            ("served", f"{receipt.tokens_out} tokens, {steps} receipt{'s' if steps > 1 else ''};"
                       f" the first after {said['first_token_ms']} ms, all after {said['total_ms']} ms"),
            ("price", f"{octo(receipt.amount)} for {receipt.tokens_in} in and {receipt.tokens_out} out"),
            ("voucher", f"the channel's newest says {octo(channel['paid'])} in total, for {channel['leaves']} steps"),
            ("why", self._stage.named(said["because"])),
        ]  # fmt: skip
        rows += [
            ("not", f"{self._stage.who(peer)}: {self._stage.named(why)}") for peer, why in said["not_chosen"].items()
        ]
        rows += [
            ("failed", f"{self._stage.who(peer)}: {self._stage.named(why)}") for peer, why in said["failed"].items()
        ]
        rows.append(("receipt", Text(said["receipt"], style="cyan")))
        self._out.print(Panel(facts(rows), border_style="dim", expand=False))
        self._out.print()

    # ---- the receipts ----

    def _check_receipts(self, turns: list[Turn]) -> None:
        self._stage.chapter("The receipts, checked offline from their files")
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
        self._stage.expect(wrong is not None, "an answer with one changed letter still passed")
        self._out.print(Text(f"One letter of the answer changed: {printable(wrong or 'NOT FOUND')}", style="dim"))
        flip = bytearray(turn.data)
        flip[turn.data.index(turn.file.receipt.signature) + 7] ^= 1
        try:
            broken = [f.detail for f in examine(parse(bytes(flip))).findings if f.verdict == "broken"]
            caught = broken[0] if broken else None
        except EncodingInvalid as error:
            caught = error.message
        self._stage.expect(caught is not None, "a receipt file with one flipped bit still passed")
        self._out.print(Text(f"One bit of the signature flipped: {printable(caught or 'NOT FOUND')}", style="dim"))

    # ---- small things ----

    def _facts(self, turns: list[Turn], money: LedgerMoney) -> dict[str, Any]:
        return {
            "ok": not self._stage.broken,
            "broken": self._stage.broken,
            "devnet": {key: given for key, given in self._devnet.facts().items() if key != "api_key"},
            "turns": [{"prompt": t.prompt, "answer": t.answer, "ok": t.examination.ok, **t.octo} for t in turns],
            **money.facts(),
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
