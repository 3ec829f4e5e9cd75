"""Tasks and models by name: what a run trains on."""
