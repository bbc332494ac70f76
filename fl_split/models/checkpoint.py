"""Checkpoints of transformers: what one is, and whether its config.json fits its weights.

transformers draws anew whatever does not fit. Here only a classifier for another number of
classes is, and it is said.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fl_split.models import files
from fl_split.seeds import seeded

SHOWN = 3
"""Most tensors that an error names."""

POSITIONS = "embeddings.position_embeddings"

BACKBONE = {"embeddings", "embedder", "encoder", "layers", "layernorm"}
"""First parts of names of tensors, behind the prefix, without which a model is another one."""

UNUSED = {"embeddings.mask_token": "mask_token"}
"""Tensors of a backbone that only pretraining needs."""


@dataclass(frozen=True)
class Loaded:
    """A model that was built, and what was decided on the way.

    Attributes
    ----------
    module : nn.Module
        The model.
    notes : tuple of str
        Sentences that a user should be told, as that the classifier was drawn anew.
    class_names : tuple of str
        Names that a checkpoint gives to the classes of a classifier that was kept.
    """

    module: nn.Module
    notes: tuple[str, ...] = ()
    class_names: tuple[str, ...] = ()

    def notes_on(self, class_names: Sequence[str]) -> tuple[str, ...]:
        """Return all notes, with one more if the data's classes are others than those kept."""
        pairs = [*zip(self.class_names, class_names, strict=False)]
        wrong = [(old, new) for old, new in pairs if old != new]
        if not wrong:
            return self.notes
        old, new = wrong[0]
        return (
            *self.notes,
            f"the classifier is kept, but {len(wrong)} of its {len(pairs)} classes have another "
            f"name in the data, as {old!r}, which is {new!r} there",
        )


def settings(path: str, what: str) -> dict[str, Any]:
    """Read the config.json of a checkpoint.

    Raises
    ------
    ValueError
        There is nothing at `path`, or no `what`, or an adapter without its model.
    """
    try:
        if file := files.find(path, "config.json"):
            found = files.read_json(file)
            counts = {"image_size", "patch_size", "num_channels"} & set(found)
            return found | {key: _count(key, found[key]) for key in counts}
        adapter = files.find(path, "adapter_config.json")
        base = files.read_json(adapter).get("base_model_name_or_path") if adapter else None
        reason = "" if adapter else files.explain(path, "config.json")
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot load a {what} from {path!r}: {error}") from None
    if adapter:
        raise ValueError(
            f"cannot load a {what} from {path!r}: it holds an adapter of {base!r}, not a model; "
            "merge it into its model (peft: merge_and_unload) and save that"
        )
    raise ValueError(
        f"cannot load a {what} from {path!r}: {reason}; a checkpoint of transformers or timm has "
        "one"
    )


def _count(key: str, value: Any) -> int:
    """Return a number above 0; of a size that is given as two equal ones the one."""
    if isinstance(value, list):
        if not value or value.count(value[0]) != len(value):
            raise ValueError(f"config.json: {key} is {value}, only square images can be used")
        value = value[0]
    if type(value) is not int or value < 1:
        raise ValueError(f"config.json: {key} must be a whole number above 0, got {value!r}")
    return value


def configured(kind: type[Any], found: Mapping[str, Any], path: str, classes: int) -> Any:
    """Return the settings of a model of transformers, for so many classes.

    Raises
    ------
    ValueError
        Those of its config.json make no sense.
    """
    try:
        return kind.config_class.from_dict(dict(found), num_labels=classes)
    except Exception as error:  # of several libraries
        fault = " ".join(str(error).split())
        raise ValueError(f"config.json of {path!r} makes no sense: {fault}") from None


def described(found: Mapping[str, Any]) -> str:
    """Say what the checkpoint of a config.json is."""
    names = ", ".join(map(str, found.get("architectures") or ()))
    if is_timm(found):
        return f"a timm checkpoint of architecture {found['architecture']!r}"
    if not found.get("model_type"):
        return "a checkpoint whose config.json has no model_type" + (names and f" ({names})")
    return f"a checkpoint of model_type {found['model_type']!r}" + (names and f" ({names})")


def is_timm(found: Mapping[str, Any]) -> bool:
    """Tell a config.json of timm from one of transformers."""
    return "architecture" in found and "model_type" not in found


def load(
    kind: type[Any],
    path: str,
    config: Any,
    what: str,
    seed: int,
    weights: Mapping[str, Tensor] | None = None,
) -> Loaded:
    """Load a model class of transformers; a classifier of another size is drawn from `seed`.

    Position embeddings of another grid than `config` says are loaded as they are: the model's
    own config then has the image size that they are for.

    `weights` are loaded instead of the files at `path`, if there are any.

    Raises
    ------
    ValueError
        There are no weights at `path`, or `config` does not fit them; the message names
        tensors and shapes.
    """
    model, found = _read(kind, path, config, what, seed, weights)
    notes = []
    if side := _other_grid(model, found["mismatched_keys"]):
        size = side * config.patch_size
        notes.append(
            f"config.json says images of {config.image_size} pixels, but the weights have "
            f"positions for {size} pixels ({side} x {side} patches)"
        )
        config.image_size = size
        model, found = _read(kind, path, config, what, seed, weights)
    _check_missing(model, found["missing_keys"], path, what)
    _check_shapes(model, found["mismatched_keys"], path)
    notes += _left_out(model, found["unexpected_keys"], path)
    drawn = _new_classifier(model, found)
    names = [str(name) for _, name in sorted(model.config.id2label.items())]
    is_named = not drawn and not all(name.startswith("LABEL_") for name in names)
    module = rebuilt(kind, model.config, model.state_dict())
    return Loaded(module, (*notes, *drawn), tuple(names) if is_named else ())


def rebuilt(kind: type[Any], config: Any, state: Mapping[str, Tensor]) -> Any:
    """Return a model of `config` that holds the tensors of `state`, in evaluation mode.

    What `from_pretrained` returns remembers how names were in its file, and saves itself under
    them; this model saves itself under those that every version of transformers reads.
    """
    with torch.device("meta"):
        model = kind(config)
    model.load_state_dict(state, assign=True)
    return model.eval()


def _read(
    kind: type[Any],
    path: str,
    config: Any,
    what: str,
    seed: int,
    weights: Mapping[str, Tensor] | None,
) -> tuple[Any, dict[str, Any]]:
    source = {"state_dict": dict(weights)} if weights else {}
    try:
        with seeded(seed, "model"):
            return kind.from_pretrained(
                None if weights else path,
                config=config,
                ignore_mismatched_sizes=True,  # they are told, and judged here
                dtype=torch.float32,
                output_loading_info=True,
                **source,
            )
    except Exception as error:  # every file format fails in its own way
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise ValueError(f"cannot load a {what} from {path!r}: {reason}") from None


def _other_grid(model: Any, mismatched: Sequence[tuple[str, Any, Any]]) -> int:
    """Return patches a side that the file's positions are for, 0 if there is no such fault."""
    for name, shape, expected in mismatched:
        if name == f"{model.base_model_prefix}.{POSITIONS}" and shape[-1] == expected[-1]:
            prefix = expected[1] - model.base_model.embeddings.patch_embeddings.num_patches
            side = math.isqrt(max(shape[1] - prefix, 0))
            return side if side**2 == shape[1] - prefix else 0
    return 0


def _check_missing(model: Any, missing: Sequence[str], path: str, what: str) -> None:
    """Raise ValueError if the file leaves out more than the classifier."""
    backbone = f"{model.base_model_prefix}."
    classifiers = {name for name in model.state_dict() if not name.startswith(backbone)}
    is_new = classifiers <= set(missing)
    lost = sorted(
        name
        for name in missing
        if not (is_new and name in classifiers) and not name.endswith("num_batches_tracked")
    )
    if lost:
        more = f", and {len(lost) - 1} more tensors" if len(lost) > 1 else ""
        raise ValueError(
            f"{path!r} holds no {what}: {lost[0]} is missing{more}; config.json, which asks for "
            "it, does not fit the weights"
        )


def _check_shapes(model: Any, mismatched: Sequence[tuple[str, Any, Any]], path: str) -> None:
    """Raise ValueError if a tensor has another shape, but for the classes of a classifier."""
    backbone = f"{model.base_model_prefix}."
    wrong = sorted(
        f"{name} is {tuple(shape)} in the file and {tuple(expected)} by config.json"
        for name, shape, expected in mismatched
        if name.startswith(backbone) or tuple(shape[1:]) != tuple(expected[1:])
    )
    if wrong:
        more = f"; and {len(wrong) - SHOWN} more tensors" if len(wrong) > SHOWN else ""
        raise ValueError(
            f"config.json of {path!r} does not fit its weights: {'; '.join(wrong[:SHOWN])}{more}"
        )


def _left_out(model: Any, unexpected: Sequence[str], path: str) -> list[str]:
    """Say which tensors of the file the model has no use for.

    Raises
    ------
    ValueError
        They are part of what the checkpoint computes, so that the model would be another.
    """
    layers, unused, strange = set(), set(), []
    for name in sorted(unexpected):
        own = name.removeprefix(f"{model.base_model_prefix}.")
        layer = re.match(r"(?:encoder\.)?layers?\.(\d+)\.", own)
        part = own.partition(".")[0]
        if layer and int(layer[1]) >= getattr(model.config, "num_hidden_layers", math.inf):
            layers.add(int(layer[1]) + 1)
        elif own in UNUSED or (part not in BACKBONE and "classifier" not in part):
            unused.add(UNUSED.get(own, part))
        else:
            strange.append(name)
    if strange:
        more = f" and {len(strange) - SHOWN} more" if len(strange) > SHOWN else ""
        raise ValueError(
            f"config.json of {path!r} does not fit its weights: the model that it describes has "
            f"no {', '.join(strange[:SHOWN])}{more}"
        )
    count = getattr(model.config, "num_hidden_layers", 0)
    notes = [
        f"config.json says {count} layers, the weights have {max(layers)}: the last "
        f"{max(layers) - count} are left out"
    ] if layers else []  # fmt: skip
    return notes + ([f"weights that are not used: {', '.join(sorted(unused))}"] if unused else [])


def _new_classifier(model: Any, found: Mapping[str, Any]) -> list[str]:
    """Say that the classifier was drawn anew, and why."""
    backbone, classes = f"{model.base_model_prefix}.", model.config.num_labels
    for name, shape, _ in sorted(found["mismatched_keys"]):
        if not name.startswith(backbone):
            return [
                f"the classifier is drawn anew: the checkpoint has {shape[0]} classes, the data "
                f"{classes}"
            ]
    if any(not name.startswith(backbone) for name in found["missing_keys"]):
        return ["the classifier is drawn anew: the checkpoint has none"]
    return []
