"""Joins the processes of a run, which may be on several hosts or on one host.

`jax.distributed` does the work and knows most clusters. This module decides when to call it, so
that a run on one host waits for nobody, and turns its failures into readable messages.
"""

import glob
import importlib.util
import math
import os
import threading
from collections.abc import Callable, Mapping
from typing import Any

import jax

from vit_jax.devices import peers
from vit_jax.errors import UserError
from vit_jax.ranges import above

# JAX's own time limit ends the process without a readable message, so it is set to a day, and
# `initialize` applies a shorter limit of its own.
_JAX_TIMEOUT = 24 * 3600


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
    heartbeat_timeout: float = peers.HEARTBEAT_TIMEOUT,
) -> None:
    """Joins the other processes of this run, if it has any; must be called before JAX is used.

    An argument that is None is taken from the cluster: a TPU slice, Slurm, Open MPI, or an indexed
    Job of Kubernetes. Without a cluster, either all three or none of them must be given.

    Args:
      coordinator: 'host:port' of process 0, with any free port.
      num_processes: The number of processes.
      process_id: The number of this process, counted from 0.
      timeout: The number of seconds to wait for the other processes.
      heartbeat_timeout: The number of seconds without a sign of life after which another process
        counts as lost; this one then ends with the status `LOST_PEER`, wherever it is.

    Raises:
      UserError: for settings that do not fit together, and if the processes do not meet in time.
    """
    above(0, also=()).require("--heartbeat_timeout", heartbeat_timeout)
    given = _given(coordinator, num_processes, process_id, os.environ)
    if given.get("num_processes") == 1 or not (given or _in_cluster(os.environ)):
        return
    alone_without_cluster = not given
    if len(given) == 3:
        given["cluster_detection_method"] = "deactivate"
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    given |= {
        "initialization_timeout": _JAX_TIMEOUT,
        # JAX's own watch is a reserve, see `peers`.
        "heartbeat_timeout_seconds": math.ceil(4 * heartbeat_timeout) + 60,
        "shutdown_timeout_seconds": math.ceil(peers.shutdown_timeout(heartbeat_timeout)),
    }

    def join() -> None:
        with peers.behind_a_relay():
            jax.distributed.initialize(**given)

    try:
        _within(timeout, join, _describe(given, timeout))
        peers.watch(heartbeat_timeout)
    except (ValueError, RuntimeError, OSError) as error:
        if isinstance(error, UserError):
            raise
        if alone_without_cluster and "should be defined" in str(error):
            return  # This host has accelerators as clusters have them, but is alone.
        raise UserError(f"the processes of this run cannot join: {error}. {_ADVICE}") from error


_ADVICE = (
    "Give every process --coordinator=HOST:PORT (of process 0), --num_processes and --process_id"
)


def _given(
    coordinator: str | None,
    num_processes: int | None,
    process_id: int | None,
    env: Mapping[str, str],
) -> dict[str, Any]:
    """The checked arguments of `jax.distributed.initialize`; empty if the cluster decides all."""
    coordinator = coordinator or env.get("JAX_COORDINATOR_ADDRESS")
    if coordinator and not coordinator.rpartition(":")[2].isdigit():
        raise UserError(f"--coordinator={coordinator}; expected HOST:PORT of process 0")
    if num_processes is not None and num_processes < 1:
        raise UserError(f"--num_processes={num_processes}; expected at least 1")
    if coordinator and (size := env.get("OMPI_COMM_WORLD_SIZE")):
        # Open MPI 5 numbers its processes but names no host to meet at. JAX then needs all three
        # arguments, so the numbers are read from Open MPI's variables.
        num_processes = int(size) if num_processes is None else num_processes
        process_id = int(env["OMPI_COMM_WORLD_RANK"]) if process_id is None else process_id
    if process_id is not None and not 0 <= process_id < (num_processes or process_id + 1):
        raise UserError(
            f"--process_id={process_id}; expected 0 to {(num_processes or 1) - 1}, one less than "
            f"--num_processes"
        )
    given = {
        "coordinator_address": coordinator,
        "num_processes": num_processes,
        "process_id": process_id,
    }
    given = {name: value for name, value in given.items() if value is not None}
    if given and len(given) < 3 and num_processes != 1 and not _in_cluster(env):
        raise UserError(f"no cluster says what the flags leave out. {_ADVICE}")
    return given


def _in_cluster(env: Mapping[str, str]) -> bool:
    """Whether this process is one of several, as far as the environment variables tell.

    On a Cloud TPU host only the metadata server knows. The answer is then True, and JAX asks the
    server.
    """
    # An interactive shell in an allocation of many tasks is a Slurm step of one task.
    if "SLURM_PROCID" in env and "SLURM_STEP_NODELIST" in env:
        return min(int(env.get(f"SLURM_{k}", 1)) for k in ("NTASKS", "STEP_NUM_TASKS")) > 1
    if int(env.get("OMPI_COMM_WORLD_SIZE", 1)) > 1:
        if "OMPI_MCA_orte_hnp_uri" not in env and "JAX_COORDINATOR_ADDRESS" not in env:
            raise UserError(
                "this Open MPI does not say where its processes can meet: give --coordinator="
                "HOST:PORT of the first one's host"
            )
        return True
    hosts = env.get("TPU_PROCESS_ADDRESSES") or env.get("TPU_WORKER_HOSTNAMES")  # GKE
    if hosts:
        return "," in hosts or int(env.get("MEGASCALE_NUM_SLICES", 1)) > 1
    if "KUBERNETES_SERVICE_HOST" in env and "JOB_COMPLETION_INDEX" in env:
        if importlib.util.find_spec("kubernetes") is None:
            raise UserError(
                "this is a pod of an indexed Kubernetes Job; to find the others, JAX needs `pip "
                "install kubernetes`, or give --coordinator, --num_processes and --process_id="
                "$JOB_COMPLETION_INDEX (--num_processes=1 if there are no others)"
            )
        return True
    return _has_tpu() and "cpu" not in env.get("JAX_PLATFORMS", "")


def _has_tpu() -> bool:
    devices = glob.glob("/dev/accel*") + glob.glob("/dev/vfio/[0-9]*")
    return bool(devices) and importlib.util.find_spec("libtpu") is not None


def _describe(given: Mapping[str, object], timeout: float) -> str:
    where = given.get("coordinator_address", "the address that the cluster gives")
    count = given.get("num_processes")
    return (
        f"after {timeout:g} s the {f'{count} ' if count else ''}processes of this run have not met "
        f"at {where}: is that the host of process 0, can every host reach it, and does every "
        "process run with its own --process_id and the same --num_processes?"
    )


def _within(timeout: float, call: Callable[[], object], message: str) -> None:
    """Runs `call`, and raises UserError with `message` if it takes longer than `timeout` seconds.

    The call cannot be cancelled, so it then continues in a thread that nothing waits for.
    """
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="jax.distributed", daemon=True)
    thread.start()
    thread.join(timeout)
    if thread.is_alive():
        raise UserError(message)
    if errors:
        raise errors[0]
