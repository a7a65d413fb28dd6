"""What bench.serving times gives what its peers give."""

from __future__ import annotations

from bench.serving import _evaluations, _of_lines, _shown


def test_lines_are_answered_alone_and_in_a_list(tmp_path):
    calls = list(_of_lines(tmp_path, 300).values())
    one, many, near = (found["ours"]() for found in calls)
    assert list(one[0]) == many[0][0]
    assert abs(one[1][0] - many[1][0][0]) < 1e-5
    assert len(near) == 10
    for found in calls:
        if "fastText" in found:
            assert found["fastText"]()


def test_evaluations_agree_with_the_eager_loop():
    for n_heads in (1, 8):
        calls = _evaluations(32, n_heads)
        assert calls["ours"]() == calls["torch eager"]()


def test_times_have_a_unit():
    assert [_shown(each) for each in (2.5e-5, 0.0031, 1.234)] == ["25 µs", "3.1 ms", "1.23 s"]
