"""How things look, where that can mislead: addresses to paste, strangers' text, streamed words, prices."""

import io

import pytest
from rich.console import Console

from node.cli.devnet import _prices
from node.cli.model_facts import print_model
from node.cli.offers import _print_narrow
from node.cli.served import abilities, price
from node.cli.show import bare, counted, elided, printable, screen, size, span, table
from node.cli.streaming import Wrapped
from node.cli.welcome import best_address


@pytest.mark.parametrize(
    ("addresses", "best"),
    [
        ([], None),
        (["/ip4/127.0.0.1/tcp/1/p2p/x", "/ip4/192.168.1.7/tcp/1/p2p/x"], "/ip4/192.168.1.7/tcp/1/p2p/x"),
        (["/ip4/192.168.1.7/tcp/1/p2p/x", "/ip4/8.8.8.8/tcp/1/p2p/x"], "/ip4/8.8.8.8/tcp/1/p2p/x"),
        (["/ip6/::1/tcp/1/p2p/x", "/dns4/example.org/tcp/1/p2p/x"], "/dns4/example.org/tcp/1/p2p/x"),
        (["/ip4/127.0.0.1/tcp/1/p2p/x"], "/ip4/127.0.0.1/tcp/1/p2p/x"),
    ],
)
def test_the_address_to_paste_is_the_one_that_reaches_farthest(addresses: list[str], best: str | None) -> None:
    assert best_address(addresses) == best


@pytest.mark.parametrize("text", ["\x1b[2J", "a\rb", "\x9b31m", "\u202egnp.exe", "\x07"])
def test_strangers_cannot_steer_the_terminal(text: str) -> None:
    assert not set(printable(text)) & set("\x1b\r\x9b\u202e\x07")


def test_ordinary_text_of_any_script_is_left_alone() -> None:
    text = "Zürich 東京 👩‍💻 שלום\n\tend"
    assert printable(text) == text


def test_streamed_words_wrap_at_spaces_under_the_indent() -> None:
    out = Console(file=io.StringIO(), width=30, color_system=None)
    out.print("Model    ", end="")
    wrapped = Wrapped(out, indent=9)
    for piece in ["The oct", "opus has", " three hearts and", " nine brains.", "\nIt is clever."]:
        wrapped.write(piece)
    wrapped.end()
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["Model    The octopus has three", "         hearts and nine", "         brains.",
                     "         It is clever."]  # fmt: skip


def test_a_pipe_gets_no_trailing_blanks_and_no_colour(capsys: pytest.CaptureFixture[str]) -> None:
    screen().print(table("A", "B", rows=[("1", "2"), ("333", "")]))
    assert capsys.readouterr().out.splitlines() == ["A    B", "1    2", "333"]


@pytest.mark.parametrize(
    ("count", "shown"), [(12, "12 bytes"), (1500, "1.5 kB"), (93_300_000, "93.3 MB"), (26e9, "26.0 GB")]
)
def test_sizes_have_a_unit_that_fits(count: int, shown: str) -> None:
    assert size(int(count)) == shown


@pytest.mark.parametrize(("seconds", "shown"), [(3, "3 s"), (240, "4 min"), (7500, "2 h 5 min"), (273_600, "3 d 4 h")])
def test_spans_are_short(seconds: float, shown: str) -> None:
    assert span(seconds) == shown


def test_amounts_beyond_what_a_float_holds_are_exact() -> None:
    assert bare(123456789 * 10**18 + 1) == "123456789.000000000000000001"


def test_providers_of_a_devnet_ask_different_prices() -> None:
    assert _prices(None, 3) == (("0.10", "0.30"), ("0.12", "0.36"), ("0.14", "0.42"))
    assert _prices("0.1:0.3, 0.08:0.24", 2) == (("0.1", "0.3"), ("0.08", "0.24"))


CHAT = {"name": "Otter", "works": ["chat"], "context": 2048, "tokens_per_s": 214, "first_token_ms": 95,
        "memory_bytes": 982_000_000, "price_in": "1 OCTO", "price_out": "3 OCTO"}  # fmt: skip
VOICE = {"name": "flite", "works": ["speak"], "context": 8192, "tokens_per_s": 0, "first_token_ms": 0,
         "memory_bytes": 0, "price_in": "1 OCTO", "price_out": "3 OCTO"}  # fmt: skip


def test_a_model_is_told_by_what_it_does() -> None:
    assert abilities(CHAT) == "2048 tokens of context, 214 tokens/s, the first after 95 ms"
    assert abilities(VOICE) == "speak"
    assert abilities({**VOICE, "works": ["embed"], "context": 512}) == "embed, 512 tokens of context"
    assert price(CHAT) == "1 OCTO in, 3 OCTO out, per million tokens"
    assert price(VOICE).endswith("per million units")


def test_an_offer_on_a_narrow_screen_keeps_names_whole() -> None:
    out = Console(file=io.StringIO(), width=60, color_system=None)
    offer = {"peer": "12D3KooWabcdefgh", "tier": "consumer", "slots": 1, "expires_ms": 0}
    _print_narrow(out, {**offer, "models": [{**CHAT, "price_in": 10**18, "price_out": 3 * 10**18}]})
    lines = out.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[:2] == ["abcdefgh  consumer, 1 slot, for 0 s", "  Otter"]
    assert all(len(line) <= 60 for line in lines)
    assert "982.0 MB of memory" in " ".join(line.strip() for line in lines)


def test_one_is_singular_and_a_cid_is_whole_where_there_is_room() -> None:
    cid = "bafyrei" + "a" * 52
    assert [counted(n, "peer") for n in (0, 1, 2)] == ["0 peers", "1 peer", "2 peers"]
    assert elided(cid, Console(width=80)) == "bafyreiaa…aaaaaa"
    assert elided(cid, Console(width=200)) == cid


@pytest.mark.parametrize(
    ("modality", "context", "told", "not_told"),
    [("text", 2048, ["2048 tokens", "per million tokens"], "units"), ("speech", 0, ["per million units"], "tokens")],
)
def test_a_models_price_is_for_what_it_is_counted_in(
    capsys: pytest.CaptureFixture[str], modality: str, context: int, told: list[str], not_told: str
) -> None:
    words = ("name", "version", "model", "format", "quantisation", "licence", "creator", "creator_is", "state")
    empty = ("lookalike_of", "parent", "source", "directory", "running", "files", "fits")
    texts, nothing = dict.fromkeys(words, "x"), dict.fromkeys(empty, ())
    price = {"price_in": 10**17, "price_out": 3 * 10**17, "providers": ["12D3"], "size_bytes": 1}
    print_model({**texts, **nothing, **price, "modality": modality, "context": context})
    shown = capsys.readouterr().out
    assert all(part in shown for part in told)
    assert not_told not in shown
