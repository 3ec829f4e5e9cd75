"""What workers are forked with: imported once, without a look at what is garbage, as all of it stays.

An optimizer's first step asks for torch's compiler, which takes a second. What is frozen is never looked through in the
workers, so that they go on sharing its memory.
"""

from __future__ import annotations

import gc

gc.disable()
try:
    import torch._dynamo  # noqa: F401

    import steppe._command.pool  # noqa: F401
finally:
    gc.freeze()
    gc.enable()
