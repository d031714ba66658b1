"""`octo-node receipts verify`: nothing but a file, and a verdict that can be trusted."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import nacl.signing
import pytest
from click.testing import CliRunner, Result

from market.errors import OctoError
from market.identity import Binding, peer_of_public_key, sign_binding
from market.money import OCTO
from market.quote import Quote, sign_quote
from market.receipt import Receipt, SignedReceipt, sign_receipt
from market.signing import Secp256k1Signer
from market.testing import ByteTokenizer
from market.tools import CallForm
from node.cli import main
from node.cli.exits import BROKEN, OK, USAGE
from node.cli.receipts import _prompt_ids
from tests.node.api.conftest import ScriptedNode, api, desk, node
from tests.node.test_cli_run import Run, run
from verifier.receipt_file import ReceiptFile, encode
from verifier.transcript import StreamTranscript

__all__ = ["api", "desk", "node", "run"]

NOW_MS = 1_790_000_000_000
WORDS = ["The ", "octopus ", "pays ", "its ", "debts", "."]


def digest(tag: str) -> bytes:
    return hashlib.sha256(tag.encode()).digest()


class Peer:
    def __init__(self, name: str) -> None:
        self._key = nacl.signing.SigningKey(digest(name))
        self.peer = peer_of_public_key(bytes(self._key.verify_key))

    def sign(self, data: bytes) -> bytes:
        return bytes(self._key.sign(data).signature)


@pytest.fixture(scope="module")
def receipt_file() -> ReceiptFile:
    return made()


def made(*, pieces: bool = False) -> ReceiptFile:
    """Six tokens, or as many pieces that count for 0 to 5 units."""
    seller, buyer = Peer("seller"), Peer("buyer")
    receipt_key, wallet = Secp256k1Signer(digest("receipt key")), Secp256k1Signer(digest("wallet"))
    binding = Binding(
        network="octo-test", peer=seller.peer, receipt_key=receipt_key.address, wallet=wallet.address,
        not_before_ms=NOW_MS - 1000, not_after_ms=NOW_MS + 10**9, nonce=1,
    )  # fmt: skip
    signed_binding = sign_binding(binding, peer=seller, receipt_key=receipt_key, wallet=wallet)
    shared = {
        "network": "octo-test", "provider": seller.peer, "client": buyer.peer, "model": "bafymodel",
        "weights": "bafyweights", "engine": "engine/1", "rail": "ledger/1", "task": digest("task"),
        "prompt": digest("prompt"), "sampling": digest("sampling"), "tokens_in": 7,
    }  # fmt: skip
    quote = Quote(
        **shared, max_tokens=100, price_in=OCTO, price_out=3 * OCTO, tick_tokens=64, expires_ms=NOW_MS + 60_000,
        final=True,
    )  # fmt: skip
    signed_quote = sign_quote(quote, receipt_key)
    transcript = StreamTranscript(
        task=digest("task"), quote=signed_quote.digest(), prompt=digest("prompt"), sampling=digest("sampling"),
        pieces=pieces,
    )  # fmt: skip
    for token, word in enumerate(WORDS):
        transcript.add(token, word.encode())
    commitment = transcript.close_chunk()
    receipt = Receipt(
        **shared, binding=signed_binding.cid(), channel=digest("channel"), seq=0, final=True, finish="stop",
        quote=signed_quote.digest(), tokens_out=commitment.tokens, chunks=commitment.chunks,
        chain_head=commitment.head, transcript_root=commitment.root, amount=quote.cost_of(commitment.tokens),
        started_ms=NOW_MS, ended_ms=NOW_MS + 500,
    )  # fmt: skip
    return ReceiptFile(
        receipt=sign_receipt(receipt, receipt_key), quote=signed_quote, binding=signed_binding,
        tokens=tuple(transcript.tokens), chunk_sizes=tuple(transcript.chunk_sizes),
        text_sizes=tuple(transcript.text_sizes), text_digests=tuple(transcript.text_digests), salt=digest("salt"),
        pieces=pieces,
    ).sealed()  # fmt: skip


@pytest.fixture
def path(receipt_file: ReceiptFile, tmp_path: Path) -> Path:
    made = tmp_path / "made.receipt"
    made.write_bytes(encode(receipt_file))
    return made


def verify(path: Path, *options: str) -> Result:
    return CliRunner().invoke(main, ["receipts", "verify", str(path), *options])


def verdicts(result: Result) -> dict[str, str]:
    return {finding["what"]: finding["verdict"] for finding in json.loads(result.stdout)["findings"]}


def test_a_good_receipt_passes_and_what_nobody_checked_is_said(path: Path) -> None:
    done = verify(path)
    assert done.exit_code == OK, done.output
    assert "Nothing is broken" in done.stdout
    assert "? unknown" in done.stdout
    assert "? unknown  payment" in done.stdout


def test_what_is_counted_is_told_tokens_of_a_text_units_of_other_work(path: Path) -> None:
    assert "tokens    7 in, 6 out" in verify(path).stdout
    assert json.loads(verify(path, "--json").stdout)["receipt"]["unit"] == "tokens"
    path.write_bytes(encode(made(pieces=True)))
    done = verify(path)
    assert done.exit_code == OK, done.output
    assert "units     7 in, 15 out" in done.stdout
    assert " tokens" not in done.stdout.replace("a prompt's tokens", "")
    assert json.loads(verify(path, "--json", "--answer", "a").stdout)["receipt"]["unit"] == "units"
    assert verify(path, "--answer", "a").exit_code == OK, "pieces are no text: that they differ is no finding"


def test_the_shown_answer_is_compared_with_the_hashes(path: Path) -> None:
    done = verify(path, "--json", "--answer", "".join(WORDS))
    assert done.exit_code == OK
    assert verdicts(done)["answer"] == "holds"


def test_an_answer_with_another_word_is_broken(path: Path) -> None:
    done = verify(path, "--answer", "The octopus forgives its debts.")
    assert done.exit_code == BROKEN
    assert "BROKEN" in done.stdout
    assert done.stdout.index("✗ broken") < done.stdout.index("✓ holds")


def test_an_answer_can_lie_in_a_file(path: Path, tmp_path: Path) -> None:
    text = tmp_path / "answer.txt"
    text.write_text("".join(WORDS))
    assert verify(path, "--answer-file", str(text)).exit_code == OK
    text.write_text("".join(WORDS) + "\n")
    assert verify(path, "--answer-file", str(text)).exit_code == BROKEN


def test_any_flipped_bit_ends_with_4_and_no_traceback(path: Path, receipt_file: ReceiptFile) -> None:
    data = encode(receipt_file)
    for at in range(0, len(data), 97):
        flipped = bytearray(data)
        flipped[at] ^= 1 << (at % 8)
        path.write_bytes(flipped)
        done = verify(path)
        assert done.exit_code == BROKEN, (at, done.output)
        assert done.exception is None or isinstance(done.exception, SystemExit)


def test_a_forger_who_mends_the_checksum_is_found_by_the_signature(receipt_file: ReceiptFile, path: Path) -> None:
    dearer = replace(receipt_file.receipt.read(), amount=1)
    body = sign_receipt(dearer, Secp256k1Signer(digest("forger"))).body
    forged = replace(receipt_file, receipt=SignedReceipt(body=body, signature=receipt_file.receipt.signature)).sealed()
    path.write_bytes(encode(forged))
    done = verify(path, "--json")
    assert done.exit_code == BROKEN
    found = verdicts(done)
    assert (found["file"], found["signature"]) == ("holds", "broken")


def test_another_provider_than_expected_is_broken(path: Path) -> None:
    assert verify(path, "--provider", Peer("seller").peer).exit_code == OK
    assert verify(path, "--provider", Peer("buyer").peer).exit_code == BROKEN


def test_a_file_that_is_no_receipt_says_so(path: Path) -> None:
    path.write_bytes(b"GIF89a")
    done = verify(path)
    assert done.exit_code == BROKEN
    assert "no receipt file" in done.stdout


@pytest.mark.parametrize(
    "options", [("--answer", "a", "--answer-file", "made.receipt"), ("--prompt-file", "made.receipt")]
)
def test_options_that_contradict_or_lack_another_are_wrong_usage(path: Path, options: tuple[str, ...]) -> None:
    given = [option.replace("made.receipt", str(path)) for option in options]
    assert verify(path, *given).exit_code == USAGE


def test_a_prompt_file_is_made_a_prompt_of_as_the_api_does_it(tmp_path: Path) -> None:
    class Formed(ByteTokenizer):
        call_form = CallForm.BARE

    tool = {"type": "function", "function": {"name": "clock"}}
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    file = tmp_path / "request.json"

    def prompt(tokenizer: ByteTokenizer, said: object) -> str:
        file.write_text(said if isinstance(said, str) else json.dumps(said))
        return bytes(_prompt_ids(tokenizer, file)).decode()

    request = {"model": "x", "messages": messages, "tools": [tool], "seed": 5, "unheard_of": 1}
    assert prompt(Formed(), request) == "tool: clock\nuser: Hi\n"
    assert prompt(Formed(), {**request, "tool_choice": "none"}) == "user: Hi\n"
    assert prompt(ByteTokenizer(), request).startswith("system: You can call these functions:")
    assert prompt(Formed(), messages) == prompt(ByteTokenizer(), messages) == "user: Hi\n"
    assert prompt(Formed(), "Hi") == "user: Hi\n"
    assert prompt(Formed(), '{"a": 1}') == 'user: {"a": 1}\n'
    with pytest.raises(OctoError, match="role"):
        prompt(Formed(), [{"role": "root", "content": "Hi"}])


def test_verifying_touches_no_data_folder(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OCTO_DATA_DIR", str(tmp_path / "nowhere"))
    assert verify(path).exit_code == OK
    assert not (tmp_path / "nowhere").exists()


async def test_the_list_and_a_receipt_of_a_node_say_what_is_counted(run: Run, node: ScriptedNode) -> None:
    node.record = replace(node.record, pieces=True)
    listed = (await run("receipts", "list")).stdout
    assert listed.splitlines()[1].split()[5:8] == ["7", "0", "units"]
    assert json.loads((await run("receipts", "list", "--json")).stdout)["receipts"][0]["unit"] == "units"
    shown = await run("receipts", "show", node.record.receipt.cid(), code=BROKEN)
    assert "units     7 in, 0 out" in shown.stdout
