"""The public laws: every entry of every table keeps them, and each is broken by something."""

import subprocess
import sys
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from flwr.app import RecordDict
from pydantic.dataclasses import dataclass

from fl_split import testing
from fl_split.codecs import CODECS, Codec, Received, parse_codec
from fl_split.models import MODELS
from fl_split.models.lenet import LeNet
from fl_split.models.preprocessing import Preprocessing
from fl_split.models.pretrained import Pretrained
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT
from fl_split.payload import Payload
from fl_split.specs import STRICT
from fl_split.testing import check_codec, check_engine, check_model, check_skew, check_strategy
from simulations.data.skew import SKEWS, LabelNoise, Noise, Skew, parse_skew
from simulations.engines import ENGINES
from simulations.engines.inline import Inline, InlineGrid
from strategies import STRATEGIES, Strategy
from strategies.checks import check_tasks
from strategies.parallel import Parallel
from strategies.server.tasks import SERVER

VARIANTS = ["parallel(average_heads=False)", "sflv2(phi=1)", "sglr(phi=0.0)"]
SMALL = {
    "lenet": LeNet(image_size=16),
    "resnet18": ResNet18(width=4, small_images=True),
    "vit": ViT(hidden_size=24, num_hidden_layers=3, num_attention_heads=3, patch_size=4),
}


def test_every_door_leads_somewhere_and_opens_only_when_asked():
    assert sorted(testing.ROOMS) == testing.__all__
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)
    with pytest.raises(AttributeError, match="it has check_channel, check_codec, check_engine"):
        testing.check_everything  # noqa: B018
    code = (
        "import sys, fl_split.testing as t; t.check_codec;"
        "print([m for m in ('strategies', 'simulations') if m in sys.modules])"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


# Every entry keeps the laws.


@pytest.mark.parametrize("spec", CODECS)
def test_every_codec_keeps_the_laws(spec):
    check_codec(parse_codec(spec))


@pytest.mark.parametrize("name", MODELS)
def test_every_model_keeps_the_laws(name, tmp_path):
    spec = SMALL.get(name)
    if spec is None:
        small = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2)
        small.build(image_size=12, channels=3, num_classes=10, seed=0).save_pretrained(tmp_path)
        spec = Pretrained(str(tmp_path))
    assert type(spec) is MODELS[name]
    check_model(spec)


@pytest.mark.parametrize("spec", SKEWS)
def test_every_skew_keeps_the_laws(spec):
    check_skew(*parse_skew(spec))


@pytest.mark.parametrize("spec", [*STRATEGIES, *VARIANTS])
def test_every_strategy_keeps_the_laws(spec):
    check_strategy(spec)


def test_the_inline_engine_keeps_the_laws():
    check_engine("inline")


@pytest.mark.slow
def test_the_ray_engine_keeps_the_laws(ray_session):
    """By hand, so that the shared Ray serves: with these two every engine is checked."""
    assert {*ENGINES} == {"inline", "ray"}

    @contextmanager
    def session(app):
        yield ray_session(workers=2, app=app)

    check_engine(SimpleNamespace(session=session))


# Parts that break them.


@dataclass(frozen=True, config=STRICT)
class Faulty(Codec):
    """Breaks the law that it is asked to break."""

    law: str

    def encode(self, smashed, generator):
        tokens = smashed.tokens
        if self.law == "copies" and len(tokens) > 1:
            tokens = tokens / (tokens - tokens[:1]).norm()
        if self.law == "graph":
            tokens = tokens.detach()
        return Payload({"tokens": tokens}, {"labels": smashed.labels})

    def pack(self, payload, generator):
        tokens = payload.carried["tokens"]
        if self.law == "global":
            tokens = tokens + torch.rand(())
        if self.law == "in place":
            tokens.detach().mul_(0.5)
        if self.law == "not finite":
            tokens = tokens.nan_to_num()
        if self.law == "secret":
            object.__setattr__(self, "kept", tokens)
            tokens = tokens.half()
        if self.law == "shape":
            tokens = tokens[:, :4]
        return Payload({"tokens": tokens}, payload.side)

    def unpack(self, packed):
        values = {name: value.float() for name, value in packed.carried.items()}
        return Payload(values, packed.side)

    def decode(self, payload):
        tokens, labels = payload.carried["tokens"], payload.side["labels"].long()
        if self.law == "secret" and payload.carried["tokens"].shape == self.kept.shape:
            tokens = self.kept + 0 * tokens
            object.__setattr__(self, "kept", self.kept * 0)
        if self.law == "damaged" and tokens.abs().max() > 100:
            raise ZeroDivisionError
        if self.law == "rows":
            return Received(tokens, labels, torch.ones(2))
        return Received(tokens, labels)


class Silent(Faulty):
    def __repr__(self):
        return "Silent()"


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        ("copies", "copies of one sample must work: ValueError: values that are not finite"),
        ("damaged", "damaged bytes must raise ValueError and nothing else, got ZeroDivisionError"),
        ("global", "packing twice with the same generator differs"),
        ("graph", "gradients must flow through every value"),
        ("in place", "packing must not change the payload"),
        ("rows", "every row must have a weight"),
        ("secret", "made of the counted bytes alone"),
        ("shape", "unpacked values must have the shapes"),
    ],
)
def test_a_codec_that_breaks_a_law_is_told_which(law, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_codec(Faulty(law))


def test_a_codec_whose_repr_is_no_spec_does_not_pass():
    with pytest.raises(AssertionError, match="must be a spec that builds an equal one"):
        check_codec(Silent(""))


@dataclass(frozen=True, config=STRICT)
class FaultyNet:
    """LeNet, but for the law that it is asked to break."""

    law: str

    def build(self, **sizes):
        seed = int(torch.seed() % 1000) if self.law == "seed" else sizes["seed"]
        return LeNet(image_size=16).build(**{**sizes, "seed": seed})

    def preprocessing(self):
        return Preprocessing(std=(0.0,)) if self.law == "pixels" else Preprocessing()

    def split(self, module, cut, end=0):
        if self.law == "behind":
            cut = min(cut, 4)
        head, tail = LeNet(image_size=16).split(module, cut, end)
        if self.law == "flops":
            head.forward_flops = lambda samples: 7
        if self.law == "weights":
            with torch.no_grad():
                next(tail.parameters()).add_(1)
        if self.law == "result":
            tail.register_forward_hook(lambda module, given, output: output * 2)
        return head, tail


@pytest.mark.parametrize(
    ("law", "sentence"),
    [
        ("behind", "behind the last stage, must raise ValueError"),
        ("flops", "operations of the head must be those that torch counts"),
        ("pixels", "standard deviations above 0, got"),
        ("result", "the parts must give the logits of the whole"),
        ("seed", "the same seed must build the same"),
        ("weights", "cutting must not change"),
    ],
)
def test_a_model_that_breaks_a_law_is_told_which(law, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_model(FaultyNet(law))


class Global(Noise):
    def pixels(self, pixels, owner):
        return pixels + np.random.randint(0, 2, pixels.shape, dtype=np.uint8)


class Wide(Skew):
    def __repr__(self):
        return "Wide()"

    def __eq__(self, other):
        return type(other) is Wide

    def labels(self, labels, num_classes, owner):
        return labels + 1


class Counting(LabelNoise):
    """What a client sees depends on how many came before."""

    def pixels(self, pixels, owner):
        return pixels + np.uint8(len(pixels) % 7)


def test_a_skew_that_breaks_a_law_is_told_which():
    with pytest.raises(AssertionError, match="the same seed must give the same data"):
        check_skew(Global())
    with pytest.raises(AssertionError, match="labels must be classes"):
        check_skew(Wide())


class Wild(Parallel):
    """Learns something that no seed decides."""

    def aggregate(self, round, updates):
        found = super().aggregate(round, updates)
        head = found["head"].numpy() + np.float32(1e-3 * np.random.default_rng().normal())
        return {**found, "head": type(found["head"]).of(head)}


class Lazy(Parallel):
    """Leaves some batches unseen."""

    def train_round(self, round):
        active = round.begin(round.clients, head=round.head)
        while active:
            active = round.serve_together(active)
        for one in round.traffic.values():
            one.samples //= 2
        return round.updates()


class Forgetful(Parallel):
    """Lets the whole round fail with one client."""

    def train_round(self, round):
        found = super().train_round(round)
        if len(found) < len(round.clients):
            raise RuntimeError("somebody is missing")
        return found


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (Wild, "the same seed must give the same result"),
        (Lazy, "an epoch of client 0 must see its"),
        (Forgetful, "training must go on without a client that failed"),
    ],
)
def test_a_strategy_that_breaks_a_law_is_told_which(kind, sentence):
    with pytest.raises(AssertionError, match=sentence):
        check_strategy(kind())


@dataclass(frozen=True, config=STRICT)
class Turns(Strategy):
    """One part of the clients after the other, each part as in `parallel`."""

    parts: int = 2

    def train_round(self, round):
        for first in range(self.parts):
            active = round.begin(round.clients[first :: self.parts], head=round.head)
            while active:
                active = round.serve_together(active)
        return round.updates()


@dataclass(frozen=True, config=STRICT)
class Darker(Skew):
    """All images of a client lose the same brightness."""

    most: int = 90

    def pixels(self, pixels, owner):
        return pixels - np.uint8(owner.draw.integers(self.most))


def test_parts_from_outside_that_break_no_law_pass():
    check_strategy(Turns(parts=3))
    check_skew(Darker())
    check_codec(Faulty(""))
    check_model(FaultyNet(""))


class LosingGrid(InlineGrid):
    """Remembers no client when a run goes on."""

    def restore(self, states):
        super().restore(dict.fromkeys(states, RecordDict()))


class Losing(Inline):
    def session(self, app):
        return nullcontext(partial(LosingGrid, app))


def test_an_engine_that_loses_clients_is_told_so():
    with pytest.raises(AssertionError, match="stopped and resumed must equal never stopped"):
        check_engine(Losing())


# Task graphs.


@pytest.fixture
def result(simulate):
    """Return the result of one round in a U-shape, which has all kinds of transfers."""
    found = []
    simulate(
        watch=lambda row, result: found.append(result), rounds=1, local_steps=2, clients=2, end=2
    )
    return found[0]


@pytest.mark.parametrize(
    "kind",
    ["up", "output gradient up", "down", "output down", "forward", "backward", "end", "serve",
     "sync up", "sync down"],
)  # fmt: skip
def test_an_amount_that_is_not_in_the_graph_is_missed(result, kind):
    check_tasks(result)
    number = next(n for n, task in enumerate(result.tasks) if task.kind == kind)
    tasks = list(result.tasks)
    tasks[number] = tasks[number]._replace(amount=tasks[number].amount + 1)
    with pytest.raises(AssertionError, match="must add up to"):
        check_tasks(replace(result, tasks=tasks))


def test_a_task_that_waits_for_a_later_one_or_not_for_its_clients_last_is_told(result):
    first = next(task for task in result.tasks if task.kind == "forward")
    number = result.tasks.index(first)
    for after, sentence in (((number,), "earlier tasks only"), ((), "the client's task before")):
        tasks = list(result.tasks)
        tasks[number] = first._replace(after=after)
        with pytest.raises(AssertionError, match=sentence):
            check_tasks(replace(result, tasks=tasks))


def test_a_payload_that_nobody_serves_is_told(result):
    """Take it from the serving task's list, as if the server had made the gradient of nothing."""
    tasks = [
        task._replace(after=task.after[1:]) if task.kind == "serve" else task
        for task in result.tasks
    ]
    with pytest.raises(AssertionError, match="must be served once"):
        check_tasks(replace(result, tasks=tasks))


def test_the_graph_of_two_clients_in_turn_is_this(simulate):
    """sflv2, one step each: client 1 is served after the tail has stepped on client 0."""
    found = []
    simulate(
        watch=lambda row, result: found.append(result.tasks), strategy="sflv2(order='cyclic')",
        rounds=1, local_steps=1, clients=2,
    )  # fmt: skip
    shape = [(task.kind, task.client, task.step) for task in found[0]]
    number = {place: n for n, place in enumerate(shape)}
    serves, steps = ([n for n, t in enumerate(found[0]) if t.kind == k] for k in ("serve", "step"))
    assert [sorted(found[0][n].after) for n in serves] == [
        [number["up", 0, 0]], sorted([number["up", 1, 0], steps[0]]),
    ]  # fmt: skip
    assert [found[0][n].after for n in steps] == [(serves[0],), (serves[1],)]
    for client in (0, 1):
        chain = ["sync down", "forward", "up", "down", "backward", "sync up"]
        places = [number[kind, client, int(kind == "sync up")] for kind in chain]
        assert places == sorted(places)
        for before, after in pairwise(places):
            assert before in found[0][after].after
    average = found[0][-1]  # waits for both heads, and for the tail's last step
    assert (average.kind, average.client, average.amount) == ("average", SERVER, 0)
    ends = {number["sync up", 0, 1], number["sync up", 1, 1], steps[1]}
    assert {*average.after} == ends
    assert len(shape) == 2 * len(chain) + len(serves) + len(steps) + 1
