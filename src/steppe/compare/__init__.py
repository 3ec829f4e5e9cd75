"""The harness behind `steppe compare`. Needs the extra `study`: pip install 'steppe[study]'.

A task of your own is a function of the seed that returns a `Task`; `steppe compare --task my_module:my_task` runs it.
"""

from steppe.compare.data.examples import Split, Task
from steppe.compare.data.metrics import Metric

__all__ = ["Metric", "Split", "Task"]
