"""Engines: what runs the virtual clients."""
