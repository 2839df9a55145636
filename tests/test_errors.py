import os
import signal
import time

import pytest
import torch

from flowprior.errors import LostProcess, NonFiniteLoss, UserError, entry_point


def ended(action, capsys, monkeypatch, note=None):
    """The exit code with which a main that does ``action`` ends, and the lines that it says."""
    monkeypatch.delenv("FLOWPRIOR_EXIT_CODE", raising=False)
    if note is not None:
        monkeypatch.setenv("FLOWPRIOR_EXIT_CODE", str(note))
        monkeypatch.setattr(signal, "signal", lambda *arguments: signal.SIG_DFL)
    with pytest.raises(SystemExit) as end:
        entry_point(action)()
    return end.value.code, [line for line in capsys.readouterr().err.splitlines() if line]


def raising(error):
    def action():
        raise error

    return action


ENDS = [
    (UserError("no such\nthing"), 2, "error: no such thing"),
    (NonFiniteLoss("step 3 is not finite"), 3, "stopped: step 3 is not finite; the last checkpoint is intact"),
    (LostProcess("another process ended"), 1, "stopped: another process ended"),
    (OSError(28, "No space left on device", "x.png"), 2, "error: x.png: No space left on device"),
    (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
]


@pytest.mark.parametrize("error, code, line", ENDS)
def test_whatever_ends_a_command_early_is_one_line_and_an_exit_code(error, code, line, capsys, monkeypatch):
    found, lines = ended(raising(error), capsys, monkeypatch)
    assert found == code and len(lines) == 1 and lines[0].startswith(line)


def test_sigterm_unwinds_ends_with_143_and_leaves_the_callers_handler(capsys, monkeypatch):
    before, unwound = signal.getsignal(signal.SIGTERM), []

    def action():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        finally:
            unwound.append(True)

    code, lines = ended(action, capsys, monkeypatch)
    assert (code, unwound) == (143, [True]) and lines == ["stopped by SIGTERM; run the same command again to go on"]
    assert signal.getsignal(signal.SIGTERM) == before


class SignalledSequence:
    """A signal comes while its first element is read, as it may while torch.asarray reads the bytes of a file."""

    def __init__(self, number):
        self.number = number

    def __len__(self):
        return 1

    def __getitem__(self, place):
        os.kill(os.getpid(), self.number)
        time.sleep(5)


@pytest.mark.parametrize(
    "number, code, line", [(signal.SIGTERM, 143, "stopped by"), (signal.SIGINT, 130, "interrupted;")]
)
def test_a_signal_that_torch_makes_an_error_of_its_own_of_is_no_damaged_file(number, code, line, capsys, monkeypatch):
    errors = []

    def read():
        try:
            torch.asarray(SignalledSequence(number))
        except Exception as error:
            errors.append(type(error))
            raise UserError(f"the weights are damaged ({error}): restore or delete them") from error

    before = signal.getsignal(number)
    found, lines = ended(read, capsys, monkeypatch)
    assert errors == [ValueError]  # torch does make one of it
    assert found == code and len(lines) == 1 and lines[0].startswith(line)
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("error, code, line", [row for row in ENDS if row[1] != 1])
def test_of_several_processes_the_first_leaves_its_line_and_its_code_for_the_script(
    error, code, line, capsys, monkeypatch, tmp_path
):
    note = tmp_path / "note"
    assert ended(raising(error), capsys, monkeypatch, note) == (code, [])
    assert ended(raising(UserError("another")), capsys, monkeypatch, note) == (2, [])
    [said] = (tmp_path / "note.said").read_text().splitlines()
    assert said.startswith(line) and note.read_text() == f"{code}\n"


def test_a_process_that_lost_another_is_silent_once_that_has_said_why(capsys, monkeypatch, tmp_path):
    ended(raising(UserError("why")), capsys, monkeypatch, tmp_path / "note")
    assert ended(raising(LostProcess("gone")), capsys, monkeypatch, tmp_path / "note") == (1, [])


def test_the_exit_code_of_a_stopped_loop_is_left_for_the_script(capsys, monkeypatch, tmp_path):
    assert ended(raising(SystemExit(143)), capsys, monkeypatch, tmp_path / "note") == (143, [])
    assert (tmp_path / "note").read_text() == "143\n"
