"""The floor under all commands: the app, methods by name, files, devices, ranks, workers, clocks."""
