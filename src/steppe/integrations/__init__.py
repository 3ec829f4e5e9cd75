"""Hosts that own the training loop: one file per host, imported only when asked for."""
