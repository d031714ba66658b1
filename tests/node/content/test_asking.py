"""Paths and Accept headers from strangers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from market.errors import EncodingInvalid
from node.content.asking import RAW_TYPE, attachment, content_path, form_of, names_in

NAMES = st.text(st.characters(exclude_characters="/\0", exclude_categories=["Cs"]), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)


@given(st.lists(NAMES, min_size=1, max_size=8).map(tuple))
def test_every_good_path_is_read_back(names: tuple[str, ...]) -> None:
    assert names_in(content_path(names)) == names
    assert names_in(content_path(names) + "/") == names
    assert content_path(names).isascii()


@pytest.mark.parametrize("path", [
    "/ipfs/../etc/passwd", "/ipfs/x/..", "/ipfs/x/%2e%2e/y", "/ipfs/x/%2E./y", "/ipfs/./x", "/ipfs//x", "//ipfs/x",
    "/ipfs/x//", "/ipfs/a%2fb", "/ipfs/%00", "/ipfs/x%", "/ipfs/x%zz", "/ipfs/%ff%fe", "/ipfs/%c0%ae%c0%ae", "",
    "ipfs/x", "/ipfs/" + "n" * 256, "/a" * 40, "/%e2%80%a6" * 40,
])  # fmt: skip
def test_a_path_that_somebody_could_read_otherwise_is_refused(path: str) -> None:
    with pytest.raises(EncodingInvalid):
        names_in(path)


@given(st.text(max_size=80))
def test_no_path_breaks_it(path: str) -> None:
    try:
        names = names_in("/" + path)
    except EncodingInvalid:
        return
    assert not {"", ".", ".."} & set(names)


@pytest.mark.parametrize(
    ("query", "accept", "form"),
    [
        (None, "", "plain"), (None, "*/*", "plain"), (None, "text/html,*/*;q=0.8", "plain"), ("raw", "", "raw"),
        ("raw", "application/vnd.ipld.car", "raw"), (None, RAW_TYPE, "raw"), (None, f"{RAW_TYPE};q=0.9, */*", "raw"),
        (None, f"{RAW_TYPE};q=0, */*", "plain"), (None, RAW_TYPE.upper(), "raw"), ("car", "", None),
        ("", "", None), ("tar", RAW_TYPE, None), (None, "application/vnd.ipld.car;version=1", None),
        (None, "application/vnd.ipld.car, */*;q=0.1", "plain"), (None, f"application/vnd.ipld.car, {RAW_TYPE}", "raw"),
    ],
)  # fmt: skip
def test_the_form_follows_the_query_then_accept(query: str | None, accept: str, form: str | None) -> None:
    assert form_of(query, accept) == form


@given(NAMES)
def test_a_name_in_a_header_can_end_nothing(name: str) -> None:
    text = attachment(name)
    assert text.startswith("attachment")
    assert text.isascii() and text.isprintable()
    assert text.count('"') == 2


def test_a_name_that_ascii_cannot_say_is_said_twice() -> None:
    assert attachment("a b.gguf") == 'attachment; filename="a b.gguf"'
    assert attachment("é.gguf") == "attachment; filename=\"_.gguf\"; filename*=UTF-8''%C3%A9.gguf"
