"""The entry point of the command `steppe`: finds its commands, turns bad input into one sentence and exit code 2."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Any

BAD_INPUT, INTERRUPTED = 2, 130
_COMMANDS = {
    "compare": "steppe.compare.commands", "studies": "steppe.compare.studies", "methods": "steppe._command.methods",
    "bench": "steppe.bench.command", "evaluate": "steppe.evaluate.commands", "finetune": "steppe.finetune.commands",
    "predict": "steppe.finetune.answering", "rho": "steppe.compare.rho", "look": "steppe.look.command",
}  # fmt: skip
"""Where each command is, which adds itself to the one app; in the order in which --help lists them."""
_EXTRAS = {
    "finetune": "study,finetune", "predict": "study,finetune", "evaluate": "study,evaluate", "look": "study,curvature",
}  # fmt: skip
"""What a command needs beside the extra `study`."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run `steppe` with `arguments` (those of the process by default).

    Returns:
        The exit code: 0 done, 1 some runs failed, 2 bad input, 130 interrupted.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # or torch's profiler writes to stderr; read on import
    try:
        return _run(sys.argv[1:] if arguments is None else arguments)
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("steppe"):
            raise
        extra = _EXTRAS.get(next(iter(sys.argv[1:] if arguments is None else arguments), ""), "study")
        return _refuse(f"this needs {error.name}, which is not installed; run: pip install 'steppe[{extra}]'")
    except KeyboardInterrupt:
        print("steppe: interrupted", file=sys.stderr)
        return INTERRUPTED


def _run(arguments: Sequence[str]) -> int:
    asked = _COMMANDS.get(next(iter(arguments), ""))
    for module in [asked] if asked else _COMMANDS.values():  # the one, as each takes a while
        import_module(module)
    from steppe._command.app import BadInputError, UsageError, app
    from steppe._command.lookup import at_home

    try:
        return app([at_home(each) for each in arguments], prog_name="steppe", standalone_mode=False) or 0
    except BadInputError as error:
        return _refuse(str(error))
    except UsageError as error:
        return _refuse(_unknown(error) or _too_many(error) or _missing(error) or error.format_message())  # type: ignore[attr-defined]


def _unknown(error: Any) -> str | None:
    """The sentence about a flag that there is not, with the one that was meant; None of other errors."""
    if not hasattr(error, "option_name") or not hasattr(error, "possibilities"):
        return None
    from steppe._command.lookup import near

    flags = [name.lstrip("-") for each in error.ctx.command.params for name in each.opts if name.startswith("--")]
    meant = near(error.option_name.lstrip("-"), flags)
    return f"unknown flag {error.option_name}; " + (f"did you mean --{meant}?" if meant else "see --help")


def _too_many(error: Any) -> str | None:
    """The sentence about a word that belongs to no flag; None of other errors."""
    found = re.match(r"Got unexpected extra argument\S* \((.*)\)", str(error))
    if found is None or error.ctx is None:
        return None
    return f"{found[1]} stands behind no flag; `{error.ctx.command_path} --help` lists them"


def _missing(error: Any) -> str | None:
    """The sentence about an argument that is not there, with what it is; None of other errors."""
    said = str(getattr(getattr(error, "param", None), "help", None) or "")
    if not type(error).__name__.startswith("Missing") or not said:
        return None
    return f"{error.param.name} is missing: {said[0].lower()}{said[1:]}"


def _refuse(sentence: str) -> int:
    print(f"steppe: {' '.join(sentence.split())}", file=sys.stderr)
    return BAD_INPUT
