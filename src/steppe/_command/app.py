"""The app `steppe`, to which every command adds its own, and the sentence that refuses bad input."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

import steppe
from steppe._command.files import finite

FAILED, INTERRUPTED = 1, 130
UsageError: type[Exception] = typer.BadParameter.__mro__[2]
"""What typer raises for bad flags: click's ClickException, which newer releases of typer bring along themselves."""

app = typer.Typer(
    name="steppe",
    help="Sharpness-aware gradients for PyTorch: compare the methods on your data, read their cards.",
    rich_markup_mode=None, pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]},
)  # fmt: skip


class BadInputError(Exception):
    """Something a user gave cannot be used; the message is one sentence that says what to do."""


@contextmanager
def refusing(*kinds: type[ValueError]) -> Iterator[None]:
    """Bad input raises ValueError with its sentence; other ValueErrors are bugs and keep their traceback.

    Args:
        kinds: where only these are about input, or the disk; all by default.
    """
    caught = kinds or (ValueError,)
    try:
        yield
    except caught as error:
        raise BadInputError(str(error)) from error


def hush(*names: str) -> None:
    """Let these libraries log nothing but errors: what matters comes back as one sentence."""
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)


def print_json(value: Any) -> None:
    """A record on stdout, for other programs."""
    typer.echo(json.dumps(finite(value), indent=1))


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"steppe {steppe.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command("help", short_help="Say what a command does and which flags it has.")
def help_(
    command: Annotated[str | None, typer.Argument(help="A command.", show_default=False)] = None,
) -> None:
    """Say what a command does and which flags it has, as --help does."""
    app([*([command] if command else []), "--help"], prog_name="steppe", standalone_mode=False)
