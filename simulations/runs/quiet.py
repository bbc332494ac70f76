"""Keeps libraries from writing into our output."""

from __future__ import annotations

import logging

import datasets
from transformers.utils import logging as transformers_logging


def quiet_libraries() -> None:
    """Stop the progress bars and remarks of datasets, transformers and Flower in this process."""
    datasets.disable_progress_bars()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("flwr", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
