"""Experiment: the whole configuration, flat scalars and spec strings, checked when it is read.

Where a spec string is expected, a :class:`~fl_split.foreign.Given` object may stand.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from fl_split.accelerators import check_name
from fl_split.foreign import Given, plug_in
from fl_split.models.preprocessing import Resize
from fl_split.recipe.precision import Name
from fl_split.spec_errors import SpecError, sentence, unknown
from fl_split.specs import located, parse
from simulations.data.decoding import OnBad
from simulations.runs.key_checks import checked_cut, checked_end, checked_stack
from simulations.runs.parts import SPEC_TABLES, Parts, build, spelt_out
from simulations.runs.paths import Written, expanded, placed
from simulations.runs.settings import plugin_files

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


UNTOLD: dict[str, Any] = {"untold": True}
"""Marks keys whose default is not worth a word beside anything else, as no compression of
gradients; labels of a report leave it out."""


class Experiment(BaseModel):
    """One run, all specs spelt out; the same keys in TOML, ``key=value`` and Flower's config."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )

    plugins: str = Field(
        "",
        description="Python files with parts of your own, with commas between",
        json_schema_extra=UNTOLD,
    )
    dataset: str = Field("digits()", description="which images")
    partition: str = Field("dirichlet(alpha=0.3)", description="who holds which samples")
    skew: str = Field(
        "none()",
        description="how clients' training data differ beside that",
        json_schema_extra=UNTOLD,
    )
    image_size: Annotated[int, Field(ge=0)] = Field(
        0,
        description="side of images; 0 takes the commonest, a checkpoint its own",
        json_schema_extra=UNTOLD,
    )
    channels: Literal[0, 1, 3] = Field(
        0,
        description="1 for grey images, 3 for colour; 0: grey if all images are",
        json_schema_extra=UNTOLD,
    )
    resize: Resize = Field(
        "",
        description="how images become squares: squash, shortest+crop or pad; empty: as the "
        "checkpoint says, else squash",
        json_schema_extra=UNTOLD,
    )
    test_resize: Resize = Field(
        "", description="the same of test images; empty: as in training", json_schema_extra=UNTOLD
    )
    on_bad_image: OnBad = Field(
        "error",
        description="images that cannot be decoded: error, or skip leaves them out",
        json_schema_extra=UNTOLD,
    )
    cache_gb: Annotated[float, Field(ge=0)] = Field(
        20.0,
        description="GB of decoded images kept on disk; beyond, they are decoded each time",
        json_schema_extra=UNTOLD,
    )
    clients: Count = Field(100, description="virtual clients")
    fraction: Share = Field(1.0, description="share of the clients sampled per round")
    model: str = Field("vit()", description="which model")
    cut: int | str = Field(
        2, description="blocks or stages on the client, or the name of the last of them"
    )
    end: int | str = Field(
        0, description="U-shape: stages before the client's again, or the first of them; 0 is off"
    )
    tokens: str = Field(
        "none()",
        description="which tokens of an image go on in the head and over the cut",
        json_schema_extra=UNTOLD,
    )
    codec: str = Field("identity()", description="how smashed data are compressed")
    downlink: str = Field(
        "identity()", description="how cut gradients are packed", json_schema_extra=UNTOLD
    )
    channel: str = Field(
        "perfect()",
        description="what the link does to smashed data on their way up",
        json_schema_extra=UNTOLD,
    )
    down_channel: str = Field(
        "perfect()",
        description="what the link does to cut gradients on their way down",
        json_schema_extra=UNTOLD,
    )
    strategy: str = Field("parallel()", description="who trains when, what is averaged")
    aggregation: str = Field(
        "fedavg()", description="how weights are averaged each round", json_schema_extra=UNTOLD
    )
    rounds: Count = Field(20, description="rounds")
    budget: str = Field(
        "none()",
        description="what else may end a run, after a whole round",
        json_schema_extra=UNTOLD,
    )
    batch_size: Count = Field(16, description="samples per client and step; the last may be less")
    local_epochs: Count = Field(1, description="passes of a client over its samples per round")
    local_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps of a client per round; 0 goes by local_epochs"
    )
    head_optimizer: str = Field("adam(lr=0.001)", description="of every client's head")
    tail_optimizer: str = Field("adam(lr=0.001)", description="of the server's tail")
    augment: str = Field(
        "none()",
        description="what clients do to their images in training",
        json_schema_extra=UNTOLD,
    )
    schedule: str = Field(
        "constant()",
        description="what learning rates of head and tail are multiplied by",
        json_schema_extra=UNTOLD,
    )
    clip: str = Field(
        "none()",
        description="how large the norm of gradients may be",
        json_schema_extra=UNTOLD,
    )
    accumulate: Count = Field(
        1,
        description="steps whose gradients are averaged to one step of the optimiser",
        json_schema_extra=UNTOLD,
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of each target that goes to all classes alike",
        json_schema_extra=UNTOLD,
    )
    precision: Name = Field(
        "fp32",
        description="fp32, or products of head and tail in bf16 or fp16; payloads stay fp32",
        json_schema_extra=UNTOLD,
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="weight of earlier rounds in a moving average of the model; the average is "
        "tested and saved; 0 is off",
        json_schema_extra=UNTOLD,
    )
    freeze: str = Field(
        "",
        description="stages that are not trained, with commas between, as embeddings, block1",
        json_schema_extra=UNTOLD,
    )
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="held out for testing where a data set has no test split"
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.0,
        description="share of every client's samples kept back to test that client on",
        json_schema_extra=UNTOLD,
    )
    system: str = Field(
        "none()",
        description="devices, network and server that virtual time is computed for",
        json_schema_extra=UNTOLD,
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of everything random")
    device: str = Field(
        "auto",
        description="what computes: auto (a GPU of CUDA, else the CPU), cpu, cuda, cuda:1 or mps",
        json_schema_extra=UNTOLD,
    )
    stack: int | str = Field(
        "auto",
        description="how many clients' heads run as one; auto: a trial, on a GPU by free memory",
        json_schema_extra=UNTOLD,
    )
    deterministic: bool = Field(
        False,
        description="make a GPU give the same bits each time, more slowly; the CPU always does",
        json_schema_extra=UNTOLD,
    )
    engine: str = Field("ray()", description="what runs the clients; not under `flwr run`")
    timeout: Annotated[float, Field(gt=0)] = Field(
        600.0,
        description="seconds for a client to answer a message; then it is dropped for the round",
    )
    checkpoint_every: Annotated[int, Field(ge=0)] = Field(
        10, description="rounds between checkpoints, for `fl-split resume`; 0 writes none"
    )
    tracking: str = Field("none()", description="where rows go beside the folder")
    out: str = Field("", description="output folder; must not hold a run yet")

    @field_validator("plugins", mode="before")
    @classmethod
    def _are_files(cls, files: Any) -> Any:
        found = plugin_files(files)
        return ", ".join(str(expanded(name).absolute()) for name in found)

    @field_validator(*SPEC_TABLES, mode="wrap")
    @classmethod
    def _is_known(cls, value: Any, check: Callable[[Any], str], info: Any) -> str:
        if isinstance(value, Given):  # which a plain string would no longer be
            parse(value, SPEC_TABLES[info.field_name])
            return value
        spec, key = check(value), info.field_name
        folders = [value.folder] if isinstance(value, Written) else []
        place = partial(placed, key=key, folders=[*folders, Path.cwd()])
        return located(spelt_out(key, spec), SPEC_TABLES[key], place)

    @field_validator("cut", mode="before")
    @classmethod
    def _is_cut(cls, cut: Any) -> Any:
        return checked_cut(cut)

    @field_validator("device")
    @classmethod
    def _is_device(cls, device: str) -> str:
        return check_name(device)

    @field_validator("end", mode="before")
    @classmethod
    def _is_end(cls, end: Any) -> Any:
        return checked_end(end)

    @field_validator("stack", mode="before")
    @classmethod
    def _is_stack(cls, stack: Any) -> Any:
        return checked_stack(stack)

    @cached_property
    def parts(self) -> Parts:
        """What the spec strings describe, built once."""
        plug_in(plugin_files(self.plugins))  # in another process than the one that checked them
        return build(
            {key: getattr(self, key) for key in SPEC_TABLES}, self.clients, self.image_size
        )

    def objects(self) -> dict[str, Given]:
        """Return the keys whose value is an object in memory, which no file can hold."""
        values = {key: getattr(self, key) for key in SPEC_TABLES}
        return {key: value for key, value in values.items() if isinstance(value, Given)}

    def __copy__(self) -> Experiment:
        """Copy the keys alone: a copy may get others, which describe other parts."""
        copied = super().__copy__()
        copied.__dict__.pop("parts", None)
        return copied

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Experiment:
        """Check `values` and fill in defaults.

        Raises
        ------
        SpecError
            An unknown key, a wrong type, a value out of range or an unknown spec; the
            message names the key and says what to do.
        """
        for key in values:
            if key not in cls.model_fields:
                raise SpecError(unknown("key", key, cls.model_fields))
        plug_in(plugin_files(values.get("plugins", "")))
        try:
            return cls(**values)
        except ValidationError as error:
            raise SpecError(sentence(error)) from None

    def to_toml(self) -> str:
        """Return the resolved experiment as TOML; reading it back gives an equal one."""
        values = self.model_dump(exclude={"out"})
        return "".join(
            f"{key} = {json.dumps(value, ensure_ascii=False)}\n" for key, value in values.items()
        )
