"""A rail's name says what signatures and channel ids are bound to."""

from market.rails import LEDGER, chain_rail, parse_rail


def test_a_chain_rail_names_its_chain_and_its_escrow():
    escrow = bytes(range(20))
    assert parse_rail(chain_rail(31337, escrow)) == (31337, escrow)


def test_off_chain_the_chain_id_is_zero_and_each_rail_has_an_escrow_of_its_own():
    assert parse_rail(LEDGER)[0] == 0
    assert parse_rail(LEDGER)[1] != parse_rail("memory/1")[1]


def test_a_name_that_only_looks_like_a_chain_is_off_chain():
    for name in ("eip155:1", "eip155:01:0x" + "00" * 20, "eip155:1:0x" + "00" * 19, "eip155:1:0x" + "AB" * 20):
        assert parse_rail(name)[0] == 0
