"""What a checkpoint says of the images it was trained with, read from its own files.

Settings are read as the image processors of transformers read them, whose defaults hold for
those that are left out; for timm's as its evaluation does. Pixels are in [0, 1] here: a rescaling
of the 0 to 255 of a file by another factor than 1/255, or none, becomes part of mean and standard
deviation.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from fl_split.models import files, timm_vit
from fl_split.models.preprocessing import Interpolation, Preprocessing
from fl_split.models.resizing import Resizing, resizing

FILE = "preprocessor_config.json"

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")
"""Pillow's filters, by number."""

SWITCHES = "do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_pad"
NUMBERS = "image_mean", "image_std", "rescale_factor", "crop_pct", "resample"
SIZES = "size", "crop_size", "default_to_square"
READ = {*SWITCHES, *NUMBERS, *SIZES}

HARMLESS = {
    "auto_map", "data_format", "device", "disable_grouping", "do_convert_rgb",
    "feature_extractor_type", "image_processor_type", "input_data_format", "pad_size",
    "processor_class", "return_tensors", "_valid_processor_keys",
}  # fmt: skip
"""Settings that change no pixel of an image here, or only with others that are told."""


def read(path: str, channels: int, trained_size: int, image_size: int) -> Preprocessing:
    """Read the preprocessor_config.json of a checkpoint of transformers.

    `channels` are those of the model's images; `trained_size` and `image_size` are pixels a side,
    as config.json says and as the model is used, where 0 is any, as the data have.

    Raises
    ------
    ValueError
        The file is torn or makes no sense; the message names file and key.
    """
    try:
        file = files.find(path, FILE)
    except OSError as error:
        raise ValueError(f"cannot read {FILE} of {path!r}: {error}") from None
    if file is None:
        return Preprocessing(
            notes=(f"no {FILE}: pixels are normalised by mean 0.5 and standard deviation 0.5",)
        )
    given = files.read_json(file)
    values, notes = _with_defaults(given)
    _check_switches(str(file), values)
    found = _resizing(str(file), values, trained_size, image_size)
    mean, std = _scale(str(file), values, channels)
    ignored = [key for key, value in given.items() if value and key not in {*READ, *HARMLESS}]
    notes += [f"{FILE}: {key}={given[key]!r} is not honoured" for key in ignored]
    factor = values["do_rescale"] and values["rescale_factor"]
    is_usual = math.isclose(255 * factor, 1, rel_tol=0.01)
    return Preprocessing(
        mean,
        std,
        found.resize,
        found.shortest,
        _filter(str(file), values["resample"]),
        (*notes, *(f"{FILE}: {note}" for note in found.notes)),
        FILE if is_usual else f"{FILE}, its rescaling included,",
    )


def to_file(done: Preprocessing, side: int) -> dict[str, Any]:
    """Return what :func:`read` reads back: what was done to images, as preprocessor_config.json.

    `side` are pixels a side of the model's images. Padding, which no processor there does in
    this way, is left out: such images must be made square before.
    """
    found: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": done.resize != "pad",
        "size": {"height": side, "width": side},
        "resample": FILTERS.index(done.interpolation),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(done.mean),
        "image_std": list(done.std),
    }
    if done.resize == "shortest+crop" or done.shortest not in {0, side}:
        before = done.shortest or side
        is_square = done.resize == "squash"
        size = {"height": before, "width": before} if is_square else {"shortest_edge": before}
        crop = {"do_center_crop": True, "crop_size": {"height": side, "width": side}}
        found |= {"image_processor_type": "CLIPImageProcessor", "size": size, **crop}
    return found


def of_timm(path: str, config: Mapping[str, Any], image_size: int) -> Preprocessing:
    """Return what the config.json of a timm checkpoint says.

    `image_size` 0 takes the checkpoint's.

    Raises
    ------
    ValueError
        It makes no sense; the message names file and key.
    """
    own = config.get("pretrained_cfg")
    if not isinstance(own, dict) or not own:
        return Preprocessing(
            notes=("config.json has no pretrained_cfg: pixels are normalised by 0.5 and 0.5",)
        )
    file = str(files.find(path, "config.json"))
    try:
        channels, side = timm_vit.input_size(config)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    side = side or image_size
    values = {"image_mean": own.get("mean", 0.5), "image_std": own.get("std", 0.5)}
    mean, std = _scale(file, {**values, "do_normalize": True, "do_rescale": False}, channels, 1.0)
    mode, part = own.get("crop_mode") or "center", own.get("crop_pct") or 0.875
    size = {"center": {"shortest_edge": 0}, "squash": {"height": 0, "width": 0}}.get(str(mode))
    notes = []
    if size is None or not _is_number(part) or not 0 < part <= 1:
        notes.append(f"config.json: crop_mode={mode!r}, crop_pct={part!r} are not honoured")
        found = Resizing()
    else:
        before = dict.fromkeys(size, math.floor(side / part))
        crop = {"height": side, "width": side}
        found = resizing(before, crop, 0.0, side, image_size or side)
    name: Any = own.get("interpolation") or "bicubic"
    if name not in get_args(Interpolation):
        notes.append(f"config.json: interpolation={name!r} is not honoured, bicubic is used")
        name = "bicubic"
    said = *notes, *found.notes
    return Preprocessing(mean, std, found.resize, found.shortest, name, said, "config.json")


def _with_defaults(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Fill in the defaults of the processor that the file names, ViT's if it names none."""
    import transformers

    name = given.get("image_processor_type") or given.get("feature_extractor_type")
    short = str(name or "ViTImageProcessor").replace("FeatureExtractor", "ImageProcessor")
    short = short.removesuffix("Fast").removesuffix("Pil")
    kind = getattr(transformers, f"{short}Pil", None)
    notes = []
    if kind is None:
        notes.append(f"{FILE}: {name!r} is not known; read as a ViTImageProcessor's")
        kind = transformers.ViTImageProcessorPil
    defaults = {key: getattr(kind, key, None) for key in READ}
    own = {key: value for key, value in given.items() if key in READ}
    for key in SIZES:
        if own.get(key) is None:
            own.pop(key, None)
    return {**defaults, **own}, notes


def _check_switches(file: str, values: Mapping[str, Any]) -> None:
    for key in SWITCHES:
        if not isinstance(values[key], bool | None):
            raise ValueError(f"{file}: {key} must be true or false, got {values[key]!r}")


def _scale(
    file: str, values: Mapping[str, Any], channels: int, factor: float = 255.0
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of pixels in [0, 1].

    A processor makes (255 r p - m) / s of a pixel p, for the factor r; that is
    (p - m / 255 r) / (s / 255 r).
    """
    if values["do_rescale"]:
        rescale = values["rescale_factor"]
        if not _is_number(rescale) or rescale <= 0:
            raise ValueError(f"{file}: rescale_factor must be a number above 0, got {rescale!r}")
        factor = 255 * rescale
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)
    if values["do_normalize"]:
        mean = _per_channel(file, "image_mean", values["image_mean"], channels)
        std = _per_channel(file, "image_std", values["image_std"], channels)
        if min(std) <= 0:
            raise ValueError(
                f"{file}: image_std must be above 0, got {values['image_std']!r}; "
                "pixels are divided by it"
            )
    return tuple(m / factor for m in mean), tuple(s / factor for s in std)


def _per_channel(file: str, key: str, value: Any, channels: int) -> tuple[float, ...]:
    numbers = value if isinstance(value, list | tuple) else [value]
    if not numbers or not all(_is_number(number) for number in numbers):
        hint = "; without them set do_normalize to false" if value is None else ""
        raise ValueError(
            f"{file}: {key} must be a number or a list of numbers, got {value!r}{hint}"
        )
    if len(numbers) not in (1, channels):
        raise ValueError(
            f"{file}: {key} has {len(numbers)} numbers, the model's images {channels} channels"
        )
    return tuple(float(number) for number in numbers)


def _filter(file: str, number: Any) -> Interpolation:
    if number is None:
        return "bilinear"  # as transformers does
    if isinstance(number, bool) or number not in range(len(FILTERS)):
        raise ValueError(
            f"{file}: resample must be a filter of Pillow, 0 to {len(FILTERS) - 1}, got {number!r}"
        )
    found: Any = FILTERS[int(number)]
    return found


def _resizing(file: str, values: Mapping[str, Any], trained_size: int, image_size: int) -> Resizing:
    is_square = values["default_to_square"] is not False
    size = _sides(file, "size", values["size"], is_square)
    crop = _sides(file, "crop_size", values["crop_size"], True) if values["do_center_crop"] else {}
    part = values["crop_pct"] or 0.0
    if not _is_number(part) or not 0 <= part <= 1:
        raise ValueError(f"{file}: crop_pct must be above 0 and at most 1, got {part!r}")
    if not values["do_resize"]:
        note = "do_resize is false, but images are resized to what the model takes"
        return Resizing(notes=(note,))
    found = resizing(size, crop, part, trained_size, image_size)
    if values["do_pad"]:
        return Resizing(found.resize, found.shortest, (*found.notes, "do_pad is not honoured"))
    return found


def _sides(file: str, key: str, value: Any, is_square: bool) -> dict[str, int]:
    """Return a size as a dict, as transformers reads one number or two."""
    if isinstance(value, int) and not isinstance(value, bool):
        value = {"height": value, "width": value} if is_square else {"shortest_edge": value}
    elif isinstance(value, Sequence) and len(value) == 2 and not isinstance(value, str):
        value = dict(zip(("height", "width"), value, strict=True))
    given = {k: v for k, v in value.items() if v is not None} if isinstance(value, dict) else {}
    if not given or not all(type(side) is int and side > 0 for side in given.values()):
        raise ValueError(f"{file}: {key} must be whole numbers of pixels above 0, got {value!r}")
    return given


def _is_number(value: Any) -> bool:
    is_real = isinstance(value, int | float) and not isinstance(value, bool)
    return is_real and math.isfinite(value)
