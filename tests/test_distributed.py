"""Processes that wait for each other, and one that is told to end meanwhile."""

import os
import signal
import socket
import time

import pytest

from flowprior.distributed import distributed_world
from flowprior.errors import entry_point


@entry_point
def main():
    with distributed_world():
        pass


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_process_that_waits_for_one_that_never_comes_ends_by_sigterm(tmp_path):
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    child = os.fork()
    if child == 0:
        os.environ |= {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        try:
            main()
        finally:
            os._exit(1)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:  # until it serves the addresses of both
        with socket.socket() as other:
            if other.connect_ex(("localhost", port)) == 0:
                break
        time.sleep(0.05)
    time.sleep(0.3)
    os.kill(child, signal.SIGTERM)
    ended = 0
    while not ended and time.monotonic() < deadline:
        ended, status = os.waitpid(child, os.WNOHANG)
        time.sleep(0.05)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("it went on waiting")
    assert os.waitstatus_to_exitcode(status) == -signal.SIGTERM
