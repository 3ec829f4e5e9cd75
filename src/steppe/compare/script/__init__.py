"""A training script of the user's own in a comparison: found, given its method, watched, and asked what came of it."""
