"""A Python that starts in a blink: it forks from a process in which the slow third-party imports are done.

    python warm_python.py serve SOCKET              once, in the background
    python -S warm_python.py SOCKET -m MODULE ...   in place of ``python -m MODULE ...`` (or ``python -u -m``, torchrun's)
    python -S warm_python.py SOCKET FILE ...        in place of ``python FILE ...``, for a file of the project
    python -S warm_python.py SOCKET ...             anything else is the plain interpreter's

The fork has the caller's folder, environment, standard streams and, in the same session, process group, and runs the module or file as ``__main__``.
Its ``sys.executable`` is the script ``python`` beside the socket, which calls this file.
What an interpreter or a library reads while it starts is the server's: the hash seed, and variables such as CXX and OMP_WAIT_POLICY.
A SIGTERM or SIGINT to the caller reaches it, and who kills the caller kills it.
"""

import array
import contextlib
import json
import os
import signal
import socket
import sys
import threading
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
END = b"\n"  # of a request: JSON in one line
SIGNALS = {b"T": signal.SIGTERM, b"I": signal.SIGINT}


def serve(path: str) -> None:
    from slow_imports import import_all

    import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            connection, _ = server.accept()
            with connection:
                request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
                while not request.endswith(END):
                    request += connection.recv(1 << 20)
                if os.fork() == 0:
                    server.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    become(connection, json.loads(request[: -len(END)]), descriptors)
                for descriptor in descriptors:
                    os.close(descriptor)


def become(connection: socket.socket, request: dict, descriptors: list[int]) -> None:
    import runpy
    import traceback

    code = 1
    try:
        threading.Thread(target=end_with, args=[connection], daemon=True).start()
        with contextlib.suppress(PermissionError):  # torchrun gives its processes sessions of their own
            os.setpgid(0, request["group"])
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        for number, descriptor in enumerate(descriptors):
            os.dup2(descriptor, number)
        sys.argv, sys.executable = [request["program"], *request["arguments"]], request["executable"]
        sys.path[0] = request["folder"] if request["module"] else str(Path(request["program"]).resolve().parent)
        sys.path[1:1] = filter(None, request["environment"].get("PYTHONPATH", "").split(os.pathsep))
        if request["module"]:
            runpy.run_module(request["program"], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(request["program"], run_name="__main__")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
            connection.sendall(bytes([code % 256]))
        os._exit(code)


def end_with(connection: socket.socket) -> None:
    """Whoever signals or kills the caller means the fork."""
    while letter := connection.recv(1):
        os.kill(os.getpid(), SIGNALS[letter])
    os._exit(137)


def call(path: str, program: str, arguments: list[str], module: bool) -> int:
    request = {
        "program": program,
        "module": module,
        "arguments": arguments,
        "executable": str(Path(path).with_name("python")),
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "group": os.getpgrp(),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        text = json.dumps(request).encode() + END
        connection.sendall(text[connection.sendmsg([text], streams) :])
        for letter, number in SIGNALS.items():
            signal.signal(number, lambda *_, letter=letter: connection.send(letter))
        answer = connection.recv(1)
    return answer[0] if answer else 137


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        words = sys.argv[3:] if sys.argv[2] == "-u" else sys.argv[2:]
        if words[0] == "-m":
            sys.exit(call(sys.argv[1], words[1], words[2:], module=True))
        if Path(words[0]).suffix == ".py" and Path(words[0]).resolve().is_relative_to(ROOT):
            sys.exit(call(sys.argv[1], words[0], words[1:], module=False))
        os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
