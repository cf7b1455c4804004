import time

from convnext.training.progress.clock import Clock, duration


def test_times_are_written_as_people_write_them():
    assert [duration(seconds) for seconds in (0, 9.4, 278, 3878)] == ["0:00", "0:09", "4:38", "1:04:38"]


def test_the_first_step_of_a_session_does_not_count_into_the_time_left(monkeypatch):
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    clock = Clock(total=110)
    now = 300.0  # compiled for five minutes
    clock.step(11)  # resumed after ten steps
    assert clock.left() is None
    assert clock.words() == "elapsed 5:00"
    for step in range(12, 61):
        now += 2.0
        clock.step(step)
    assert clock.left() == 100.0
    assert clock.words() == "elapsed 6:38 · left 1:40"
