"""Runs the notebooks from top to bottom, and tells whether they still show what they do.

    python tools/notebooks.py [NAME …]          # small settings, writes nothing; `make notebooks`
    python tools/notebooks.py --write [NAME …]  # full settings; outputs go into the files

A notebook is stale, and the status 1, when its cells are not those that its outputs came from, or
when a cell now shows another kind of output (a table where there was a picture). Its second code
cell holds its settings; `metadata.vit_jax.small` of the file says what they are for a quick run.
"""

import argparse
import concurrent.futures
import hashlib
import os
import pathlib
import sys
import tempfile
import time

import nbclient
import nbformat

ROOT = pathlib.Path(__file__).parents[1]
FOLDER = ROOT / "notebooks"
SETTINGS = "settings"  # the tag of the cell whose values a quick run replaces
SECONDS = 1800  # that one cell may take
# Run first: a command that fails ends the notebook, and none writes for a terminal, whose progress
# bars would leave their control codes in the outputs.
_COMMANDS_COUNT = """
def _system(command):
    import subprocess

    command = get_ipython().var_expand(command, depth=1)
    done = subprocess.run(
        command, shell=True, executable="/bin/bash", text=True, stdout=-1, stderr=subprocess.STDOUT
    )
    print(done.stdout, end="")
    if done.returncode:
        raise RuntimeError(f"status {done.returncode}: {command}")


get_ipython().system = _system
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="such as 01 (default: all)")
    parser.add_argument("--write", action="store_true", help="full settings, and keep the outputs")
    args = parser.parse_args()
    paths = [
        path
        for path in sorted(FOLDER.glob("*.ipynb"))
        if not args.names or path.name.startswith(tuple(args.names))
    ]
    if not paths:
        parser.error(f"no notebook is called {' or '.join(args.names)}")
    # `!vit-jax` and `!python` are those of this environment, and no TPU is looked for.
    os.environ["PATH"] = f"{pathlib.Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    os.environ.setdefault("JAX_PLATFORMS", "cpu")
    os.environ["COLUMNS"] = "110"
    with concurrent.futures.ThreadPoolExecutor(1 if args.write else 2) as pool:
        problems = list(pool.map(write if args.write else check, paths))
    for problem in filter(None, problems):
        print(problem, file=sys.stderr)
    return int(any(problems))


def write(path: pathlib.Path) -> str:
    """Runs a notebook at its full settings, and keeps what it shows."""
    notebook = nbformat.read(path, as_version=4)
    problem = execute(notebook, path.name)
    if not problem:
        for output in (output for cell in notebook.cells for output in cell.get("outputs", ())):
            if "image/jpeg" in output.get("data", {}):  # Pillow gives both
                output.data.pop("image/png")
        number_cells(notebook)
        notebook.metadata.vit_jax["sources"] = digest(notebook)
        nbformat.write(notebook, path)
    return problem


def check(path: pathlib.Path) -> str:
    """Why a notebook is stale or fails, or an empty string."""
    notebook = nbformat.read(path, as_version=4)
    if notebook.metadata.vit_jax.get("sources") != digest(notebook):
        again = f"python tools/notebooks.py --write {path.name}"
        return f"{path.name}: its outputs are those of other cells. Run `{again}`"
    before = shown(notebook)
    for cell in notebook.cells:
        if SETTINGS in cell.metadata.get("tags", ()):
            small = notebook.metadata.vit_jax["small"]
            cell.source += "".join(f"\n{name} = {value!r}" for name, value in small.items())
    if problem := execute(notebook, path.name):
        return problem
    for number, (old, new) in enumerate(zip(before, shown(notebook), strict=True), 1):
        if old != new:
            return f"{path.name}: code cell {number} shows {sorted(new)}, and shew {sorted(old)}"
    return ""


def execute(notebook: nbformat.NotebookNode, name: str) -> str:
    """Runs all cells in a folder that is removed afterwards; what went wrong, or ''."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        client = nbclient.NotebookClient(
            notebook,
            timeout=SECONDS,
            kernel_name="python3",
            coalesce_streams=True,
            record_timing=False,
            resources={"metadata": {"path": folder}},
        )
        try:
            first = nbformat.v4.new_code_cell(_COMMANDS_COUNT)
            notebook.cells.insert(0, first)
            client.execute()
        except nbclient.exceptions.CellExecutionError as error:
            return f"{name}: {error}"
        finally:
            notebook.cells.remove(first)
    notebook.metadata.pop("widgets", None)
    notebook.metadata.kernelspec = {
        "display_name": "Python 3",
        "language": "python",
        "name": "python3",
    }
    notebook.metadata.language_info = {"name": "python"}
    print(f"{name}: {time.perf_counter() - begin:.0f} s", flush=True)
    return ""


def number_cells(notebook: nbformat.NotebookNode) -> None:
    """Counts the cells from 1, as if nothing had been run before them."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    for number, cell in enumerate(cells, 1):
        cell.execution_count = number
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = number


def digest(notebook: nbformat.NotebookNode) -> str:
    """A hash of what the cells say."""
    sources = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()


def shown(notebook: nbformat.NotebookNode) -> list[set[str]]:
    """For each code cell the kinds of what it shows; warnings on stderr do not count."""
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [{kind for output in cell.outputs for kind in _kinds(output)} for cell in cells]


def _kinds(output: nbformat.NotebookNode) -> list[str]:
    if output.output_type == "stream":
        return ["text"] if output.name == "stdout" else []
    return ["picture" if kind.startswith("image/") else kind for kind in output.get("data", {})]


if __name__ == "__main__":
    sys.exit(main())
