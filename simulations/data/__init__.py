"""Data: where images come from, and which client holds which of them."""
