"""What a run stores about its data, in data.json: what was decided, and digests to compare."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from simulations.runs.setup import Setup

FILE = "data.json"

ADVICE = {
    "classes": "the classes have other names or another order",
    "images": "images were changed, added or removed",
    "training rows": "other rows are trained on",
    "test rows": "other rows are tested on",
    "labels": "labels were changed",
    "partition": "clients hold other rows; was it made by another version of a library?",
}
"""What it means that a digest differs, in the order in which to look."""


def record(setup: Setup) -> dict[str, Any]:
    """Return what is stored about the data of a run."""
    train, test = setup.train, setup.test
    return {
        "dataset": setup.experiment.dataset,
        "training_images": len(train.labels),
        "test_images": len(test.labels),
        "image_shape": [*train.pixels.shape[1:]],
        "classes": len(setup.class_names),
        "training_images_of": {name: count for name, count, _ in setup.classes},
        "test_images_of": {name: count for name, _, count in setup.classes},
        "decisions": [asdict(one) for one in setup.decisions],
        "fingerprint": setup.fingerprint,
    }


def check(setup: Setup, folder: Path) -> None:
    """Compare the data with those that the run in `folder` has begun with.

    Raises
    ------
    ValueError
        They differ; the message says in what.
    """
    try:
        before = json.loads((folder / FILE).read_text())["fingerprint"]
        if not isinstance(before, Mapping):
            raise ValueError(f"its fingerprint is {before!r}")
    except FileNotFoundError:
        return  # of a version that stored none
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder / FILE} cannot be read ({error}); begin the run anew") from None
    for part, meaning in ADVICE.items():
        if before.get(part, setup.fingerprint[part]) != setup.fingerprint[part]:
            raise ValueError(
                f"the data are not those that the run in {folder} has begun with: {meaning}. Bring "
                "them back, or begin a new run"
            )


def warnings_of(setup: Setup) -> list[str]:
    """Return the decisions that somebody should look at, who sees no others."""
    return [f"{one.about}: {one.text}" for one in setup.decisions if one.is_warning]
