"""A process that has imported what runs import, and forks for each process that a test starts.

Importing takes half of the time of a tiny run. The forked process is an own one in every other way:
it has its own session, signals, output, devices and end.

python zygote.py SOCKET
"""

import ctypes
import gc
import json
import os
import runpy
import socket
import subprocess
import sys

_SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER of prctl(2)
_FILES = 3  # stdin, stdout and stderr
_MOST = 2**16  # bytes of a request


class Forked(subprocess.Popen):
    """`python <words>`, forked; it is a child of this process as if this one had started it."""

    _zygote: socket.socket | None = None

    def _execute_child(self, args, *given):
        """What `Popen` calls to start a program, with all that it was given."""
        env, ends = given[5], given[9:15]  # of three pipes, in turns to read and to write
        files = [end if end >= 0 else i for i, end in enumerate((ends[0], ends[3], ends[5]))]
        zygote = type(self)._connected(env)
        socket.send_fds(zygote, [json.dumps({"words": args, "env": env}).encode()], files)
        self.pid, self._child_created = int(zygote.recv(_MOST)), True
        self._close_pipe_fds(*ends)

    @classmethod
    def _connected(cls, env) -> socket.socket:
        if cls._zygote is None:
            # Whose parent ends before it becomes a child of this process.
            ctypes.CDLL(None).prctl(_SUBREAPER, 1)
            cls._zygote, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            with theirs:
                subprocess.Popen(
                    [sys.executable, __file__, str(theirs.fileno())],
                    pass_fds=[theirs.fileno()],
                    env=env,  # JAX reads it when it is imported.
                    start_new_session=True,
                )
        return cls._zygote


def serve(requests: socket.socket) -> dict:
    """Forks for every request, and returns it in the process that is to do it."""
    while True:
        message, files, _, _ = socket.recv_fds(requests, _MOST, _FILES)
        if not message:
            os._exit(0)
        told, tells = os.pipe()
        if between := os.fork():
            os.waitpid(between, 0)  # From now on the process is a child of the test's.
            requests.send(os.read(told, 32))
            for file in (told, tells, *files):
                os.close(file)
            continue
        if child := os.fork():
            os.write(tells, str(child).encode())
            os._exit(0)
        os.close(told)
        os.close(tells)
        os.setsid()
        for number, file in enumerate(files):
            os.dup2(file, number)
            os.close(file)
        requests.close()
        return json.loads(message)


def do(request: dict) -> None:
    """What the interpreter does with these words."""
    import jax

    os.environ.clear()
    os.environ.update(request["env"])
    # Of the variables that are read by an import, this one differs from process to process.
    jax.config.update("jax_num_cpu_devices", int(os.environ["JAX_NUM_CPU_DEVICES"]))
    first, *rest = request["words"]
    if first == "-m":
        module, *rest = rest
        sys.modules.pop(module, None)
        sys.argv = [module, *rest]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    elif first == "-c":
        code, *rest = rest
        sys.argv = ["-c", *rest]
        exec(code, {"__name__": "__main__"})
    else:
        sys.path[0] = os.path.dirname(first)
        sys.argv = [first, *rest]
        runpy.run_path(first, run_name="__main__")


if __name__ == "__main__":
    import vit_jax.train.loop  # noqa: F401
    from vit_jax.train import metrics

    with metrics._without_torch():
        import tensorboardX.event_file_writer  # noqa: F401

    gc.freeze()
    gc.set_threshold(100_000, 50, 100)  # as `conftest.py` does, and why
    do(serve(socket.socket(fileno=int(sys.argv[1]))))
