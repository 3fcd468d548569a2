"""The sub-commands of `vit-jax`, one a module.

A module's docstring is the command's help (its first line the summary), `add_arguments(parser)`
declares the arguments and `run(args)` does the work; bad input is a `UserError`. Heavy imports
stand inside `run`, because every module is imported for `vit-jax --help`. The command's name is
the module's; `vit_jax.cli.COMMANDS` lists them.
"""
