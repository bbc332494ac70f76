"""The model of an experiment, built and cut, with all that its keys put into both halves."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from fl_split.exchange.stand_in import Shallower
from fl_split.exits import insert_exits
from fl_split.models import MODELS
from fl_split.models.cut import Head, Tail, insert
from fl_split.models.freezing import freeze
from fl_split.specs import shortened
from simulations.engines.memory import available_bytes
from simulations.runs import cuts, recipes
from simulations.runs.demand import check_demand
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import Pictured, built, check_input, named
from simulations.runs.trials import check_attention, try_link


class Halves(NamedTuple):
    """A model, its halves, clients that are cut before them, what was decided about all this."""

    model: nn.Module
    head: Head
    tail: Tail
    shallower: dict[int, Shallower]
    notes: list[str]


def halves(e: Experiment, seen: Pictured) -> Halves:
    """Build the model and cut it: the same on the server, in workers and on nodes.

    Raises
    ------
    ValueError
        It cannot be built or cut, or does not fit the other keys; the message names the key.
    """
    spec, names, loaded = e.parts.model, seen.class_names, built(e, seen)
    model = loaded.module
    if spec.is_transformers:
        config: Any = model.config
        config.id2label = dict(enumerate(names))
        config.label2id = {name: label for label, name in enumerate(names)}
    model.train()  # checkpoints come in evaluation mode
    with named("freeze"):
        freeze(model, e.freeze)
    head, tail = cuts.split(e, model)
    sparse = recipes.conditional(e, head, tail)
    check_input(e, head.image_shape)
    with named("model"):
        demand = check_demand(head, tail, e.batch_size, available_bytes())
    insert(head, tail, e.parts.codec, e.seed)
    e.parts.strategy.exchange(head).prepare(head, tail, e.seed)
    with named("exits"):
        insert_exits(head, tail, e.parts.exits, len(names), e.seed)
    recipes.check_halves(e, head, tail)
    with named("codec"):
        model_name = shortened(e.model, MODELS).partition("(")[0]
        check_attention(e.parts.codec, head, model_name)
        try_link(e.parts.link(), head, tail, len(names))
    places = cuts.shallower(e, model, head)
    notes = [*loaded.notes_on(names), *sparse, *demand, *cuts.notes(places, e.clients, head)]
    return Halves(model, head, tail, places, notes)
