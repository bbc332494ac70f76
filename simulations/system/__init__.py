"""A model of who computes and sends how fast, and the clock that times a task graph by it."""
