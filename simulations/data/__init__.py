"""Data: where images come from, who holds which of them."""
