"""One file a tool. Each has ``open_run(run) -> Tracker``, and is imported in a tracker's own process only."""
