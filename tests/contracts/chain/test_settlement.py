"""When vouchers are redeemed: by worth, by age, at once when a channel closes, and never for less than the gas."""

from hypothesis import given
from hypothesis import strategies as st

from contracts.settlement import Due, SettlePolicy, choose

POLICY = SettlePolicy(worth=100, age_s=60, dust=10, batch=3)


def due(amount: int, *, closes_at: int = 0, since_ms: int = 0, name: int | None = None) -> Due:
    channel = (name if name is not None else amount).to_bytes(32, "big")
    return Due(channel=channel, amount=amount, closes_at=closes_at, since_ms=since_ms)


def amounts(dues: list[Due]) -> list[int]:
    return [one.amount for one in dues]


def test_little_and_young_waits():
    assert choose([due(50), due(40)], POLICY, now_ms=59_999) == []


def test_enough_in_all_is_redeemed_the_largest_first():
    assert amounts(choose([due(20), due(70), due(11)], POLICY, now_ms=0)) == [70, 20, 11]


def test_what_is_old_is_redeemed_with_all_the_rest():
    assert amounts(choose([due(20), due(30, since_ms=59_000)], POLICY, now_ms=60_000)) == [30, 20]


def test_dust_is_left_lying_however_old():
    assert choose([due(9)], POLICY, now_ms=10**9) == []
    assert amounts(choose([due(9), due(95)], POLICY, now_ms=0)) == [95]
    assert amounts(choose([due(9)], POLICY, now_ms=0, everything=True)) == [9]


def test_what_closes_first_goes_first_dust_or_not():
    closing = [due(5, closes_at=200), due(1, closes_at=100)]
    assert amounts(choose([due(500), *closing], POLICY, now_ms=0)) == [1, 5, 500]
    assert amounts(choose([due(50), *closing], POLICY, now_ms=0)) == [1, 5]


@given(
    st.lists(st.tuples(st.integers(1, 200), st.integers(0, 3), st.integers(0, 10**5)), max_size=12, unique=True),
    st.booleans(),
)
def test_a_choice_is_a_part_no_larger_than_a_batch_and_forgets_nothing_that_closes(items, everything):
    dues = [due(a, closes_at=c, since_ms=s, name=n) for n, (a, c, s) in enumerate(items)]
    chosen = choose(dues, POLICY, now_ms=100_000, everything=everything)
    assert len(chosen) <= POLICY.batch
    assert len({one.channel for one in chosen}) == len(chosen)
    assert {one.channel for one in chosen} <= {one.channel for one in dues}
    closing = [one for one in dues if one.closes_at]
    assert len([one for one in chosen if one.closes_at]) == min(len(closing), POLICY.batch)
    if everything:
        assert len(chosen) == min(len(dues), POLICY.batch)
