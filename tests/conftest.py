"""Settings shared by all tests: one torch thread per process, the same hypothesis examples each run."""

import hypothesis
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("steppe", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("steppe")
