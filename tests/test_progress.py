"""Progress is a bar on a terminal, lines where a task asks for them, and nothing where nobody looks."""

from __future__ import annotations

import io
import re
import sys
import time

import pytest

from mcompose.progress import ProgressBar, SharedProgress, track


class Terminal(io.StringIO):
    def isatty(self):
        return True


def open_terminal(monkeypatch):
    made = Terminal()
    monkeypatch.setattr(sys, "stderr", made)
    return made


def test_a_bar_shows_label_figures_and_note(monkeypatch):
    terminal = open_terminal(monkeypatch)
    with ProgressBar("search", unit="trial") as bar:
        assert not bar.is_silent
        bar.start(8, 3)
        bar.move_to(5, "best 0.5")
        bar.move_to(5, "best 0.5 digits 1/2")  # the same count with another note is drawn at once
        assert "best 0.5 digits 1/2" in terminal.getvalue()
        bar.advance(3)
    assert re.search(r"search: 100%\|.*\| 8/8 \[.*trial", terminal.getvalue())
    bar.finish()  # twice is no error


def test_bytes_are_shown_in_thousands_and_a_share_in_percent(monkeypatch):
    terminal = open_terminal(monkeypatch)
    bar = ProgressBar("merge")
    bar.start(2_000_000, 500_000)
    bar.advance(1_000_000)
    bar.finish()
    assert re.search(r"merge:  75%\|.*\| 1\.50M/2\.00M \[.*B/s", terminal.getvalue())
    with ProgressBar("lab numbers", unit="%") as share:
        share.start(1.0)
        share.move_to(0.25, "donors")
    assert re.search(r"lab numbers  25 %\|.*donors", terminal.getvalue())


def test_one_bar_serves_one_task_after_the_other(monkeypatch):
    terminal = open_terminal(monkeypatch)
    bar = ProgressBar(unit="question", leave=False)
    for task in ("digits", "words"):
        bar.start(2, label=task)
        bar.move_to(2)
    bar.finish()
    assert re.search(r"digits: .*/2 \[.*question.*words: .*/2 \[", terminal.getvalue(), re.DOTALL)


@pytest.mark.parametrize("every", [None, 0.0])
def test_quiet_shows_nothing_anywhere(monkeypatch, every):
    terminal = open_terminal(monkeypatch)
    bar = ProgressBar("merge", quiet=True, every=every)
    assert bar.is_silent
    bar.start(2)
    bar.move_to(2, "note")
    bar.finish()
    assert list(track("ab", label="x", total=2, unit="item", quiet=True)) == ["a", "b"]
    assert terminal.getvalue() == ""


def test_without_a_terminal_there_is_nothing_or_a_line_now_and_then(capsys, monkeypatch):
    bar = ProgressBar("merge")
    assert bar.is_silent
    bar.start(2)
    bar.move_to(2, "note")
    assert capsys.readouterr().err == ""
    clock = iter([0.0, 0.0, 5.0, 20.0, 21.0, 22.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    slow = ProgressBar("stage 1", unit="step", every=15.0)
    assert not slow.is_silent
    slow.start(10, 2)
    slow.move_to(3)
    slow.move_to(4, "loss 0.5000")
    slow.move_to(9)
    slow.move_to(10)
    lines = ["stage 1: 4 of 10 steps, loss 0.5000, 60 s left", "stage 1: 10 of 10 steps"]
    assert capsys.readouterr().err.splitlines() == lines


def test_a_tracked_loop_that_breaks_off_closes_its_bar(monkeypatch):
    terminal = open_terminal(monkeypatch)
    for item in track("abc", label="features", total=3, unit="sample"):
        if item == "b":
            break
    assert "features" in terminal.getvalue()
    assert terminal.getvalue().endswith("\n"), "the next line must not begin behind the bar"


def test_threads_report_every_unit_in_large_steps():
    passed = []

    class Listener:
        def start(self, total, done, /):
            pass

        def advance(self, amount, /):
            passed.append(amount)

        def finish(self):
            pass

    shared = SharedProgress(Listener(), step=100)
    for _ in range(25):
        shared.advance(30)
    shared.flush()
    shared.flush()
    assert sum(passed) == 750
    assert len(passed) == 7
