"""Data that comes with the package; README.md says where it is from."""
