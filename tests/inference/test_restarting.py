"""A child that fails again and again is waited for longer and longer, and never for ever."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from inference.restarting import FIRST_LOAD_S, LoadPatience, pause_s, silence_limit_s


@given(st.integers(0, 10**6))
def test_a_pause_doubles_up_to_its_limit_however_often_it_failed(failures):
    pause = pause_s(failures, first_s=0.05, limit_s=10)
    assert pause == min(10, 0.05 * 2 ** min(failures, 20))
    assert pause <= pause_s(failures + 1, first_s=0.05, limit_s=10)


def test_a_later_load_may_take_ten_times_the_slowest_and_more_after_each_failure():
    patience = LoadPatience(20)
    assert patience.limit_s(0) == patience.limit_s(5) == FIRST_LOAD_S
    patience.loaded(0.5)
    assert [patience.limit_s(failures) for failures in (0, 1, 3, 99)] == [20, 40, 160, FIRST_LOAD_S]
    patience.loaded(7)
    patience.loaded(1)
    assert patience.limit_s(0) == 70


def test_a_slow_models_silence_is_borne_longer_than_a_fast_ones_and_never_for_ever():
    assert [silence_limit_s(chunk_s) for chunk_s in (0, 0.02, 0.2, 0.5, 4, 10, 3600)] == [8, 8, 8, 15, 120, 300, 300]
