"""Make the file behind the task mnist1d: the published data set by its authors' own script.

    pip install mnist1d && python benchmarks/embedded/make_mnist1d.py

MNIST-1D (Greydanus and Kobak, ICML 2024, arXiv 2011.14439; PyPI mnist1d, Apache-2.0): 4,000 examples to train on and
1,000 for the test, each 40 numbers, made by `make_dataset` at its defaults (seed 42). Numbers are kept in steps of
1/1024, a small part of the noise that the script adds to each.
"""

import io
from pathlib import Path

import numpy as np
from mnist1d.data import get_dataset_args, make_dataset

OUT = Path(__file__).resolve().parents[2] / "src/steppe/compare/data/embedded/mnist1d.npz"
STEPS = 1024


def main() -> None:
    made = make_dataset(get_dataset_args())
    x = np.round(np.concatenate([made["x"], made["x_test"]]) * STEPS).astype(np.int16)
    y = np.concatenate([made["y"], made["y_test"]]).astype(np.uint8)
    # High and low bytes apart, which a compressor likes better.
    packed = io.BytesIO()
    np.savez_compressed(packed, high=(x >> 8).astype(np.int8), low=(x & 255).astype(np.uint8), y=y)
    OUT.write_bytes(packed.getvalue())
    print(f"{OUT.name}: {OUT.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
