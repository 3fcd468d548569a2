"""What mkdocs is told besides mkdocs.yml: pages that are made, and files from outside of docs/.

mkdocs imports this module as a hook and calls the functions `on_…`.
"""

import argparse
import os
import pathlib
import posixpath
import re

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = pathlib.Path(__file__).parents[1]
# Files of the repository that are pages, or that pages offer, and where they lie in the site.
_PAGES = {"benchmarks/RESULTS.md": "results.md", "CONTRIBUTING.md": "contributing.md"}
_PAGES |= {"CHANGELOG.md": "changelog.md"}
_LINK = re.compile(r"(?<!\!)(\]\()([^)#:\s]+)((?:#[^)\s]*)?\))")


@event_priority(100)  # before the plugin that makes pages of notebooks
def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what does not lie in docs/."""
    for source, page in _PAGES.items():
        files.append(File.generated(config, page, abs_src_path=str(_ROOT / source)))
    for source in sorted((_ROOT / "launch").iterdir()):
        files.append(File.generated(config, f"launch/{source.name}", abs_src_path=str(source)))
    for source in sorted((_ROOT / "notebooks").glob("*.ipynb")):
        name = source.relative_to(_ROOT).as_posix()
        files.append(File(name, str(_ROOT), config.site_dir, config.use_directory_urls))
    files.append(File.generated(config, "reference/commands.md", content=_commands()))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Links that leave docs/ in the repository lead to the same file's place in the site."""
    source = page.file.abs_src_path
    folder = (
        pathlib.Path(source).parent.relative_to(_ROOT).as_posix()
        if source and pathlib.Path(source).is_relative_to(_ROOT)
        else "docs"
    )
    here = posixpath.dirname(page.file.src_uri)

    def led(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        if target == "README.md":
            place = "index.md"
        elif target in _PAGES:
            place = _PAGES[target]
        elif target.startswith("docs/"):
            place = target.removeprefix("docs/")
        else:
            place = target
        return link[1] + posixpath.relpath(place, here or ".") + link[3]

    return _LINK.sub(led, markdown)


def _commands() -> str:
    """The help of every command, as a page."""
    os.environ["COLUMNS"] = "90"
    from vit_jax import cli

    parser = cli._parser()
    (choices,) = (
        action.choices
        for action in parser._actions
        if isinstance(action, argparse._SubParsersAction)
    )
    parts = [
        "# Command line\n",
        "What every command says with `--help`. Bad input ends in one message and status 2.\n",
    ]
    for name, command in choices.items():
        parts.append(f"## vit-jax {name}\n\n```text\n{command.format_help().rstrip()}\n```\n")
    return "\n".join(parts)
