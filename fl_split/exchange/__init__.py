"""Exchanges: what both halves of a model do with one batch, and the road between them."""
