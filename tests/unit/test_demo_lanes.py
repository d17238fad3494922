"""The lanes: what the reader sees must be what was measured."""

from __future__ import annotations

import pytest

from e2e.demo.lanes import IDLE, LEVELS, Scene, cells, figures, picture, rows

pytestmark = pytest.mark.unit


def steady(begin: float, end: float, gap: float) -> tuple[float, ...]:
    return tuple(begin + gap * number for number in range(round((end - begin) / gap)))


def frozen() -> Scene:
    """Tokens each 20 ms, but none from 3.0 s to 4.5 s, while the prompt is at work (3.02 s to 4.5 s)."""
    stream = (*steady(0, 3.02, 0.02), *steady(4.5, 6, 0.02))
    return Scene("frozen", (stream, stream), 2_000, prompt_sent=3.02, prompt_first=4.5)


def flowing() -> Scene:
    """The same prompt; tokens go on each 40 ms while it is at work."""
    stream = (*steady(0, 3.02, 0.02), *steady(3.02, 4.5, 0.04), *steady(4.5, 6, 0.02))
    return Scene("flowing", (stream,), 2_000, prompt_sent=3.02, prompt_first=4.5)


def test_figures_of_a_frozen_and_a_flowing_stream() -> None:
    assert frozen().longest_gaps == pytest.approx((1.5, 1.5))
    assert flowing().longest_gaps == pytest.approx((0.04,))
    assert frozen().quiet_gap == pytest.approx(0.02)
    assert flowing().gap_meanwhile == pytest.approx(0.04, rel=0.05)
    assert frozen().gap_meanwhile == pytest.approx(2 * 1.48)
    assert frozen().prompt_ttft == pytest.approx(1.48)
    assert frozen().tokens_meanwhile == (0, 0)
    assert flowing().tokens_meanwhile[0] == pytest.approx(37, abs=1)


def test_gaps_before_and_after_the_prompt_do_not_count() -> None:
    scene = Scene("", ((0.0, 2.0, 3.0, 3.1, 3.2, 9.0),), 10, prompt_sent=3.05, prompt_first=3.15)
    assert scene.longest_gaps == pytest.approx((0.1,))


def test_a_gap_that_is_still_open_counts_while_it_is_watched() -> None:
    scene = Scene("", ((1.0, 1.1),), 10, prompt_sent=1.1)
    assert scene.disturbed(scene.streams[0]) == 0
    assert scene.disturbed(scene.streams[0], now=2.6) == pytest.approx(1.5)


def test_cells_show_density_and_the_gap() -> None:
    lane = cells(frozen().streams[0], 2.0, 6.0, 80, full=2.5)
    assert len(lane) == 80
    assert "1500 ms" in lane
    empty = lane[21:50].replace("1500 ms", "").replace(" ", "")
    assert set(empty) == {IDLE}
    assert set(lane[:20] + lane[51:]) <= set(LEVELS[4:])
    assert IDLE not in cells(flowing().streams[0], 2.0, 6.0, 80, full=2.5)


def test_a_short_gap_is_not_labelled_over_tokens() -> None:
    lane = cells((0.0, 0.1, 0.5, 0.6), 0.0, 1.0, 10, full=1)
    assert "ms" not in lane and lane[2:5] == IDLE * 3


def test_nothing_outside_the_window_is_drawn() -> None:
    assert cells((0.0, 5.0), 1.0, 4.0, 12, full=1) == IDLE * 12


def test_rows_are_of_equal_width_also_while_it_runs() -> None:
    for scene in (frozen(), flowing(), Scene("early", ((), ()), 5, prompt_sent=3.0)):
        for window in (None, (0.0, 3.5)):
            assert {len(lane) for _, lane, _ in rows(scene, 60, window)} == {60}


def test_live_rows_count_the_open_gap() -> None:
    stream = steady(0, 3.0, 0.02)
    scene = Scene("live", (stream,), 2_000, prompt_sent=3.0)
    note = rows(scene, 60, (0.0, 4.0))[0][2]
    assert "1020 ms" in note


def test_picture_and_figures_are_text() -> None:
    text = picture(frozen(), 60)
    assert text.splitlines()[0] == "frozen"
    assert "first token  1480 ms" in text
    assert "2,000-token prompt" in text
    assert "1500 1500 ms" in figures(frozen())
