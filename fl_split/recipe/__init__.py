"""The recipe: how a model is trained, whatever the strategy: rates, clipping, loss, precision."""
