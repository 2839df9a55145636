import io

import pytest

from flowprior.progress import progress_bar


class Stream(io.StringIO):
    def __init__(self, terminal):
        super().__init__()
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal, seconds", [(True, 0.5), (False, 10.0)])
def test_progress_goes_to_a_terminal_often_and_into_a_file_seldom(terminal, seconds, monkeypatch):
    stream = Stream(terminal)
    monkeypatch.setattr("sys.stderr", stream)
    with progress_bar(total=1000, desc="train", unit="step") as bar:
        for _ in range(1000):
            bar.update()
    assert bar.mininterval == seconds
    # The beginning and the end, and nothing of what took milliseconds.
    assert [text.split("|")[-1].split("[")[0].strip() for text in stream.getvalue().split("\r")[1:]] == [
        "0/1000",
        "1000/1000",
    ]
