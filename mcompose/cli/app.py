"""``mcompose``: the table of contents of the command line, and the one place where errors become sentences.

Commands import what they need inside their bodies, so that ``mcompose --help`` never loads torch.
"""

from __future__ import annotations

import errno
import gc
import os
import sys
from typing import Annotated

import typer

from mcompose import __version__
from mcompose.cli import (
    align,
    check,
    evaluate,
    export,
    generate,
    import_donor,
    inspect,
    lab,
    mcub,
    merge,
    merge_adapters,
    output,
    push,
    search,
)
from mcompose.errors import McomposeError

__all__ = ["app", "main"]

app = typer.Typer(
    name="mcompose",
    help="Makes one multimodal model out of several that already exist.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

app.command("inspect")(inspect.inspect)
app.command("plan")(merge.plan)
app.command("merge")(merge.merge)
app.command("merge-adapters")(merge_adapters.merge_adapters)
app.command("import")(import_donor.import_donor)
app.command("align")(align.align)
app.command("search")(search.search)
app.command("diff")(check.diff)
app.command("verify")(check.verify)
app.command("generate")(generate.generate)
app.command("eval")(evaluate.evaluate)
app.command("push")(push.push)
app.add_typer(export.app, name="export")
app.add_typer(lab.app, name="lab")
app.add_typer(mcub.app, name="mcub")


def _print_version(value: bool) -> None:
    if value:
        output.data(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Makes one multimodal model out of several that already exist."""


def main() -> None:
    """Runs the command line; every expected error ends in one sentence and an exit code."""
    # Torch's threads otherwise spin while they wait for one another; where anything else runs on the same cores, the
    # one that is waited for gets no turn, and a step takes ten times as long. Read once, when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    gc.set_threshold(10_000)  # start-up makes many values and hardly any garbage: looking for it less often saves 4 %
    try:
        app()
    except McomposeError as error:
        output.error(error.message, hint=error.hint)
        sys.exit(error.exit_code)
    except OSError as error:
        if error.errno == errno.EPIPE:
            sys.exit(1)
        place = f" ('{error.filename}')" if error.filename else ""
        output.error(f"{error.strerror or error}{place}.", hint=_storage_hint(error))
        sys.exit(1)
    except KeyboardInterrupt:
        output.error("Interrupted.")
        sys.exit(1)


def _storage_hint(error: OSError) -> str:
    if error.errno == errno.ENOSPC:
        return "Free some space, or name an output on another disk with -o."
    if error.errno in {errno.EACCES, errno.EPERM, errno.EROFS}:
        return "Check the permissions of this path."
    return ""
