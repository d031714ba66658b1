"""What a buyer takes: units of a server's text are not billed finer than they need to be cut."""

import pytest

from inference.models.plain_tokenizer import PlainTokenizer, units_of
from market.errors import PeerBrokeProtocol
from market.message import Tokens
from market.taking import Delta, TokenTaking


def taking() -> TokenTaking:
    return TokenTaking("peer", PlainTokenizer(), (), logprobs=False)


def test_units_of_three_bytes_are_taken_across_messages() -> None:
    units, mine = units_of(b"three hearts"), taking()
    shown = [mine.take(Tokens(start=at, tokens=(unit,)), limit=10) for at, unit in enumerate(units)]
    text = "".join(item.text for taken in shown if taken for item in taken.shown if isinstance(item, Delta))
    assert text == "three hearts"


@pytest.mark.parametrize("messages", [[b"t", b"h"], [b"thr", b"e", b"e"]])
def test_a_text_cut_finer_than_it_is_long_is_refused(messages: list[bytes]) -> None:
    mine, at = taking(), 0
    with pytest.raises(PeerBrokeProtocol, match="more tokens than it has"):
        for data in messages:
            mine.take(Tokens(start=at, tokens=units_of(data)), limit=10)
            at += 1


def test_within_one_message_too() -> None:
    cut = (*units_of(b"t"), *units_of(b"h"))
    with pytest.raises(PeerBrokeProtocol, match="more tokens than it has"):
        taking().take(Tokens(start=0, tokens=cut), limit=10)
