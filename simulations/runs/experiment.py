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
from simulations.runs.cut_laws import checked_cut
from simulations.runs.key_checks import checked_end, checked_stack
from simulations.runs.parts import SPEC_TABLES, Parts, build, spelt_out
from simulations.runs.paths import Written, expanded, placed
from simulations.runs.settings import plugin_files

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(gt=0, le=1)]


UNTOLD: dict[str, Any] = {"untold": True}
"""Marks keys whose default is not worth a word beside anything else, as no compression of
gradients; labels of a report leave it out."""


def untold(default: Any, *, description: str) -> Any:
    """Declare such a key."""
    return Field(default, description=description, json_schema_extra=UNTOLD)


class Experiment(BaseModel):
    """One run, all specs spelt out; the same keys in TOML, ``key=value`` and Flower's config."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, validate_default=True, allow_inf_nan=False
    )

    plugins: str = untold(
        "", description="Python files with parts of your own, with commas between"
    )
    dataset: str = Field("digits()", description="which images")
    partition: str = Field("dirichlet(alpha=0.3)", description="who holds which samples")
    skew: str = untold("none()", description="how clients' training data differ beside that")
    image_size: Annotated[int, Field(ge=0)] = untold(
        0, description="side of images; 0 takes the commonest, a checkpoint its own"
    )
    channels: Literal[0, 1, 3] = untold(
        0, description="1 for grey images, 3 for colour; 0: grey if all images are"
    )
    resize: Resize = untold(
        "",
        description="how images become squares: squash, shortest+crop or pad; empty: as the "
        "checkpoint says, else squash",
    )
    test_resize: Resize = untold("", description="the same of test images; empty: as in training")
    on_bad_image: OnBad = untold(
        "error", description="images that cannot be decoded: error, or skip leaves them out"
    )
    cache_gb: Annotated[float, Field(ge=0)] = untold(
        20.0, description="GB of decoded images kept on disk; beyond, they are decoded each time"
    )
    clients: Count = Field(100, description="virtual clients")
    fraction: Share = Field(1.0, description="share of the clients sampled per round")
    model: str = Field("vit()", description="which model")
    cut: int | str = Field(
        2,
        description="blocks or stages on the client, or the name of the last of them; a list or a "
        "law gives each client its own",
    )
    end: int | str = Field(
        0, description="U-shape: stages before the client's again, or the first of them; 0 is off"
    )
    tokens: str = untold(
        "none()", description="which tokens of an image go on in the head and over the cut"
    )
    exits: str = untold(
        "none()",
        description="classifiers after blocks, which answer before the model's own does",
    )
    experts: str = untold(
        "none()", description="experts in blocks of the server, of which each token takes a few"
    )
    phases: str = untold(
        "none()", description="what is trained in which rounds, where parts are trained in stages"
    )
    codec: str = Field("identity()", description="how smashed data are compressed")
    downlink: str = untold("identity()", description="how cut gradients are packed")
    channel: str = untold(
        "perfect()", description="what the link does to smashed data on their way up"
    )
    down_channel: str = untold(
        "perfect()", description="what the link does to cut gradients on their way down"
    )
    strategy: str = Field("parallel()", description="who trains when, what is averaged")
    aggregation: str = untold("fedavg()", description="how weights are averaged each round")
    rounds: Count = Field(20, description="rounds")
    budget: str = untold("none()", description="what else may end a run, after a whole round")
    batch_size: Count = Field(16, description="samples per client and step; the last may be less")
    local_epochs: Count = Field(1, description="passes of a client over its samples per round")
    local_steps: Annotated[int, Field(ge=0)] = Field(
        0, description="steps of a client per round; 0 goes by local_epochs"
    )
    head_optimizer: str = Field("adam(lr=0.001)", description="of every client's head")
    tail_optimizer: str = Field("adam(lr=0.001)", description="of the server's tail")
    augment: str = untold("none()", description="what clients do to their images in training")
    schedule: str = untold(
        "constant()", description="what learning rates of head and tail are multiplied by"
    )
    clip: str = untold("none()", description="how large the norm of gradients may be")
    accumulate: Count = untold(
        1, description="steps whose gradients are averaged to one step of the optimiser"
    )
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = untold(
        0.0, description="share of each target that goes to all classes alike"
    )
    precision: Name = untold(
        "fp32", description="fp32, or products of head and tail in bf16 or fp16; payloads stay fp32"
    )
    ema: Annotated[float, Field(ge=0, lt=1)] = untold(
        0.0,
        description="weight of earlier rounds in a moving average of the model; the average is "
        "tested and saved; 0 is off",
    )
    freeze: str = untold(
        "", description="stages that are not trained, with commas between, as embeddings, block1"
    )
    sparsity: str = untold("none()", description="which weights the linear layers of the head have")
    test_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.2, description="held out for testing where a data set has no test split"
    )
    holdout: Annotated[float, Field(ge=0, lt=1)] = untold(
        0.0, description="share of every client's samples kept back to test that client on"
    )
    system: str = untold(
        "none()", description="devices, network and server that virtual time is computed for"
    )
    seed: Annotated[int, Field(ge=0)] = Field(0, description="of everything random")
    device: str = untold(
        "auto",
        description="what computes: auto (a GPU of CUDA, else the CPU), cpu, cuda, cuda:1 or mps",
    )
    stack: int | str = untold(
        "auto",
        description="how many clients' heads run as one; auto: a trial, on a GPU by free memory",
    )
    deterministic: bool = untold(
        False,
        description="make a GPU give the same bits each time, more slowly; the CPU always does",
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
