"""A way to another host that does not close when the other host does.

It is a program of its own, `python relay.py HOST PORT SOCKET`, and not a thread: JAX agrees on the
step at which a run stops while it holds Python's lock, and a thread that its messages need would
never get to run.
"""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading

_started: list[subprocess.Popen] = []  # Each ends with this process, by the end of its stdin.


def relay(target: str) -> str:
    """The address of a port of this machine that forwards to `target` ('host:port')."""
    host, _, port = target.rpartition(":")
    with socket.create_server(("127.0.0.1", 0)) as server:
        program = subprocess.Popen(
            [sys.executable, "-IS", __file__, host.strip("[]"), port, str(server.fileno())],
            pass_fds=[server.fileno()],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        _started.append(program)
        return f"127.0.0.1:{server.getsockname()[1]}"


def _serve(server: socket.socket, host: str, port: int) -> None:
    """Forwards each connection in both directions; what the other host closes stays open here."""
    held = []  # Connections that nobody answers any more.
    while True:
        near, _ = server.accept()
        try:
            far = socket.create_connection((host, port))
        except OSError:
            # Either the other end is not there yet, and JAX tries again, or it has gone.
            held.append(near) if held else near.close()
            continue
        held.append(near)
        for ends in ((near, far), (far, near)):
            threading.Thread(target=_forward, args=ends, daemon=True).start()


def _forward(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(2**16):
            sink.sendall(data)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # The run is to save its state first.
    listening = socket.socket(fileno=int(sys.argv[3]))
    threading.Thread(
        target=_serve, args=(listening, sys.argv[1], int(sys.argv[2])), daemon=True
    ).start()
    sys.stdin.read()
    os._exit(0)
