"""A Python that starts in a blink: it forks from a process in which the slow third-party imports are done.

    python warm_python.py serve SOCKET              once, in the background
    python -S warm_python.py SOCKET -m MODULE ...   in place of ``python -m MODULE ...`` (or ``python -u -m``, torchrun's)
    python -S warm_python.py SOCKET ...             anything else is the plain interpreter's

The fork has the caller's folder, environment, standard streams and process group, and runs the module as ``__main__``.
A SIGTERM to the caller reaches it, and who kills the caller kills it.
"""

import array
import contextlib
import json
import os
import signal
import socket
import sys
import threading

SLOW_IMPORTS = [
    "torch",
    "torchvision.transforms",
    "timm",
    "scipy.linalg",
    "sklearn.datasets",
    "torch_fidelity",
    "torchmetrics.functional.image",
    "faiss",
    "safetensors.torch",
    "torch.utils.tensorboard",
    "matplotlib.backends.backend_agg",
    "torch.nn.parallel",
    "torch.distributed.run",
    "yaml",
    "tqdm.auto",
]


def serve(path: str) -> None:
    import importlib

    for name in SLOW_IMPORTS:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        server.listen()
        while True:
            connection, _ = server.accept()
            with connection:
                request, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 3)
                if os.fork() == 0:
                    server.close()
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    become(connection, json.loads(request), descriptors)
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
        sys.argv, sys.path[0] = ["-m", *request["arguments"]], request["folder"]
        runpy.run_module(request["module"], run_name="__main__", alter_sys=True)
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
    while connection.recv(1):
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(137)


def call(path: str, module: str, arguments: list[str]) -> int:
    request = {
        "module": module,
        "arguments": arguments,
        "folder": os.getcwd(),
        "environment": dict(os.environ),
        "group": os.getpgrp(),
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        signal.signal(signal.SIGTERM, lambda number, frame: connection.send(b"T"))
        streams = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))]
        connection.sendmsg([json.dumps(request).encode()], streams)
        answer = connection.recv(1)
    return answer[0] if answer else 137


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        words = [word for word in sys.argv[2:4] if word != "-u"] + sys.argv[4:]
        if words[0] != "-m":
            os.execv(sys.executable, [sys.executable, *sys.argv[2:]])
        sys.exit(call(sys.argv[1], words[1], words[2:]))
