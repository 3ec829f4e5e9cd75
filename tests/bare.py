"""Code in a process of its own that has torch imported and nothing else: a fork of one that waits for such tests."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

WAITS = """if True:
    import gc, json, os, sys, torch, traceback

    def does(job):
        for number, name in ((1, job["out"]), (2, job["err"])):
            os.dup2(os.open(name, os.O_WRONLY), number)
        os.chdir(job["folder"])
        try:
            exec(job["code"], {"__name__": "__main__"})
            return 0
        except SystemExit as end:
            return end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            return 1

    gc.freeze()
    for line in sys.stdin:
        child = os.fork()
        if not child:
            code = does(json.loads(line))
            sys.stdout.flush(), sys.stderr.flush()
            os._exit(code)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@functools.cache
def _waiting() -> subprocess.Popen[str]:
    """It leaves when this process does; strings have hashes that those of this one do not have."""
    other = {**os.environ, "PYTHONHASHSEED": "1234"}
    return subprocess.Popen(
        [sys.executable, "-c", WAITS], env=other, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def run(code: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """As ``python -c code`` in the folder, this one by default: how it ends, and what it says."""
    waiting = _waiting()
    assert waiting.stdin is not None and waiting.stdout is not None
    with tempfile.NamedTemporaryFile("r") as out, tempfile.NamedTemporaryFile("r") as err:
        job = {"code": code, "folder": str(folder or Path.cwd()), "out": out.name, "err": err.name}
        print(json.dumps(job), file=waiting.stdin, flush=True)
        ended = waiting.stdout.readline()
        return subprocess.CompletedProcess(code, int(ended), out.read(), err.read())
