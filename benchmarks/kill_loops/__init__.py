"""The training loops of kill_training.py: one file per host, the methods they draw from, and the trap that kills."""
