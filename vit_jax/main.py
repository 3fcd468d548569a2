r"""The original's entry point.

    python -m vit_jax.main --workdir=/tmp/vit --config=configs/vit.py:b16,cifar10 \
        --config.pretrained_dir=/checkpoints --config.base_lr=0.02

On several hosts, the same command on each. A TPU slice, Slurm, Open MPI and Kubernetes say who the
others are; elsewhere add

    --coordinator=HOST:PORT --num_processes=N --process_id=I

--set FIELD=VALUE changes a field that the recipe's model does not name, and its constructor has:
--set model.transformer.scan=True. It may be given several times.

--heartbeat_timeout=SECONDS (100): so long may another process give no sign of life; after it, this
one ends with one line and status 134.

A recipe that is installed with this package is found by its name, --config=vit:b16,cifar10, where
there is no such file.

--allow_other_config goes on with a run whose config was another one. --smoke makes any recipe three
tiny steps on generated images, to see that it runs.
"""

import faulthandler
import os
import signal
import sys
from collections.abc import Sequence

from absl import flags, logging

from vit_jax.errors import UserError
from vit_jax.overrides import overridden
from vit_jax.recipes import with_recipe


def run(argv: Sequence[str]) -> int:
    """Runs the config that the flags in `argv` name, and returns the exit status.

    Args:
      argv: Flags only, without the program's name: `--config`, `--workdir`, `--config.x.y=z`,
        and those of the module's docstring.

    Raises:
      UserError: for a missing or unknown flag, an unreadable config, or a bad field.
    """
    config, options = parse(argv)
    workdir = options.workdir
    logging.set_verbosity(logging.WARNING)
    trainer = config.get("trainer", "train")
    if trainer == "train":
        from vit_jax import train
        from vit_jax.devices import allocator, compilation_cache, distributed, peers
        from vit_jax.train.actions.profiling import profile_server

        allocator.keep_memory()
        faulthandler.register(signal.SIGUSR1, file=2, all_threads=True)
        compilation_cache.enable()
        distributed.initialize(
            options.coordinator,
            options.num_processes,
            options.process_id,
            heartbeat_timeout=options.heartbeat_timeout,
        )
        with peers.told():
            profile_server(os.environ.get("VIT_JAX_PROFILE_PORT"))
            if options.smoke:
                from vit_jax.train import smoke

                config = smoke.shrink(config, workdir)
            try:
                train.train_and_evaluate(
                    config, workdir, allow_other_config=options.allow_other_config
                )
            except KeyboardInterrupt:
                raise KeyboardInterrupt(
                    "the same command goes on from the last checkpoint, or begins again without one"
                ) from None
    elif trainer == "inference_time":
        from vit_jax import inference_time

        inference_time.inference_time(config, workdir)
    else:
        raise UserError(f"unknown trainer {trainer!r}; expected 'train' or 'inference_time'")
    return 0


def parse(argv: Sequence[str]):
    """The config of a command line, and its other flags as attributes of one object.

    Raises:
      UserError: as `run` documents.
    """
    from ml_collections import config_flags

    from vit_jax.devices.peers import HEARTBEAT_TIMEOUT

    argv = with_recipe(argv)
    values = flags.FlagValues()
    holder = config_flags.DEFINE_config_file(
        "config",
        None,
        "File of the run's configuration.",
        flag_values=values,
        # The overrides; by default they would be looked for in the process's own arguments.
        sys_argv=["vit_jax.main", *argv],
    )
    flags.DEFINE_string("workdir", None, "Where the run is written.", flag_values=values)
    flags.DEFINE_string("coordinator", None, "HOST:PORT of process 0.", flag_values=values)
    flags.DEFINE_integer("num_processes", None, "Number of processes.", flag_values=values)
    flags.DEFINE_integer("process_id", None, "This one, from 0.", flag_values=values)
    flags.DEFINE_float(
        "heartbeat_timeout",
        HEARTBEAT_TIMEOUT,
        "Seconds of silence after which another process is lost.",
        flag_values=values,
    )
    flags.DEFINE_bool(
        "allow_other_config", False, "Go on with a run of another config.", flag_values=values
    )
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE of the config.", flag_values=values)
    flags.DEFINE_bool("smoke", False, "Run three tiny steps.", flag_values=values)
    try:
        rest = values(["vit_jax.main", *argv])[1:]
        config = holder.value
        # A config file that could not be read raises when it is first looked at.
        _ = config is None or config.items
    except (flags.Error, OSError, ImportError, SyntaxError) as e:
        raise UserError(_reason(e)) from e
    except (AttributeError, KeyError, TypeError, ValueError) as e:
        # What ml_collections raises for an unknown field or a value of another type, and what a
        # recipe raises for its argument.
        raise UserError(_reason(e)) from e
    if rest:
        raise UserError(f"unexpected argument {rest[0]!r}; every setting is a --flag")
    if config is None or not values.workdir:
        raise UserError("--config=FILE.py and --workdir=DIR must both be given")
    if values.set:
        config, _ = overridden(config, values.set)
    return config, values


def _reason(error: BaseException) -> str:
    """The one message that a user needs of the chain of exceptions that the flags raise."""
    chain = [error]
    while inner := chain[-1].__cause__ or chain[-1].__context__:
        chain.append(inner)
    if isinstance(chain[-1], UserError):  # a recipe's own
        return str(chain[-1])
    if fields := [str(e.args[0]) for e in chain if isinstance(e, KeyError)]:
        # One of them says what may have been meant.
        return "config has no field " + " ".join(max(fields, key=len).split())
    if isinstance(error, OSError):
        return "cannot read --config: " + " ".join(str(chain[-1]).split())
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def main() -> int:
    """Runs the process's command line and returns the exit status, as `vit_jax.cli.main` does."""
    from vit_jax import cli
    from vit_jax.devices import allocator

    allocator.own_process()
    return cli.guarded(lambda: run(sys.argv[1:]), prog="vit_jax.main")


if __name__ == "__main__":
    sys.exit(main())
