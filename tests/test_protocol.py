"""Both sides of a protocol: states of clients, who refuses what, and what is let go."""

from dataclasses import replace

import pytest
import torch
from flwr.app import RecordDict

from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.records import (
    BEGIN,
    END,
    GO_ON,
    GRADIENT,
    PAYLOAD,
    ROUND,
    TAIL,
    Record,
)
from fl_split.exchange.served import HalfServed
from fl_split.exchange.split import Split
from fl_split.exchange.ushape import OF_END, OUTPUT, OUTPUT_GRADIENT, TARGETS, UShape
from fl_split.exchange.whole import MOMENT, Whole
from fl_split.flat import Flat
from fl_split.payload import Payload
from simulations.clients import client_app
from simulations.clients.pool import ClientPool
from simulations.clients.state import ClientState
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.server import flower_messages, flower_private

TINY = {
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 1, "clients": 3, "batch_size": 32, "head_optimizer": "adam(lr=0.01)",
}  # fmt: skip


class Pair:
    """A client and its server, in one process."""

    def __init__(self, **changes):
        self.setup = prepare(Experiment.from_dict({**TINY, **changes}))
        self.worker = self.setup.worker()
        self.exchange, self.link = self.worker.exchange, self.worker.link
        self.pool, self.tail = ClientPool(self.worker), Flat(self.setup.tail)
        self.client = self.pool.lend(1)
        self.graphs = GraphMemory()

    def begin(self, with_weights=True):
        weights, numbers = self.setup.initial_weights(), {ROUND: 1}
        sent = {name: weights[name] for name in self.exchange.names}
        return self.say(
            Record(BEGIN, weights=sent, numbers=numbers)
            if with_weights
            else Record(GO_ON, numbers=numbers)
        )

    def say(self, record):
        return self.exchange.receive(self.client, record) or self.exchange.send(self.client)

    def serve(self, record):
        at = self.client.at
        arrival = self.link.arrive(record.sent(), at, self.tail.module)
        return self.exchange.serve(
            self.tail, {at.client: arrival}, {at.client: 1.0}, at, self.graphs
        )

    def half(self, record):
        """Go half the way through the exchange of a U-shape; return the client's answer too."""
        half = self.serve(record)
        assert isinstance(half, HalfServed) and half.action == OUTPUT
        output = self.link.across(half.outputs[1], self.client.at, "output")
        return half, self.say(Record(OUTPUT, output))

    def answer(self, served):
        return self.say(self.exchange.answer(self.link, served.cuts[1], self.client.at))


def split_in_between():
    pair = Pair()
    sent = pair.answer(pair.serve(pair.begin()))
    assert sent.action == PAYLOAD and pair.client.at.step == 1
    return pair, set()


def ushape_before_its_output():
    pair = Pair(end=2, codec="adc(ratio=0.25)")
    half, answer = pair.half(pair.begin())
    sent = pair.answer(half.resume({1: half.read(1, pair.link, answer)}))
    assert sent.action == PAYLOAD and pair.client.at.step == 1
    return pair, {TARGETS}


def ushape_half_way():
    pair, _ = ushape_before_its_output()
    _, answer = pair.half(pair.exchange.send(pair.client))
    assert answer.action == OUTPUT_GRADIENT
    return pair, {OF_END}


def local_with_its_own_tail():
    pair = Pair(strategy="local()", tail_optimizer="adam(lr=0.01)")
    assert pair.begin(with_weights=False).action == END
    return pair, {TAIL, *(f"{MOMENT}{name}" for name in ("exp_avg", "exp_avg_sq", "step"))}


@pytest.mark.parametrize(
    "arrange",
    [split_in_between, ushape_before_its_output, ushape_half_way, local_with_its_own_tail],
)
def test_a_clients_state_comes_back_from_flowers_bytes(arrange):
    pair, remembered = arrange()
    state, written = pair.client.save(), RecordDict()
    assert state.memory.keys() == remembered and state.moments
    state.write(written)
    back = ClientState.read(
        flower_private.record_from_bytes(flower_private.record_to_bytes(written))
    )
    other = ClientPool(pair.worker).lend(1)
    other.restore(back)
    for found in (back, other.save()):
        for name in ("round", "step", "keeps_head", "assignment"):
            assert getattr(found, name) == getattr(state, name)
        assert torch.equal(found.head, state.head)
        for name in ("moments", "memory"):
            mine, its = getattr(state, name), getattr(found, name)
            assert mine.keys() == its.keys()
            assert all(torch.equal(mine[k], its[k]) and mine[k].dtype == its[k].dtype for k in mine)


def test_a_client_that_never_began_has_no_state():
    assert ClientState.read(RecordDict()) is None
    assert Pair().client.save() is None


@pytest.mark.parametrize(
    ("exchange", "message"),
    [
        (Split(), "split learning knows no 'dance'"),
        (UShape(), "split learning knows no 'dance'"),
        (Whole(), "training of whole models knows no 'dance'"),
    ],
)
def test_an_exchange_refuses_an_action_that_it_does_not_know(exchange, message):
    client = Pair().client
    with pytest.raises(ValueError, match=f"^{message}$"):
        exchange.receive(client, Record("dance"))
    assert client.place is None


def test_a_client_that_is_elsewhere_in_the_exchange_says_so():
    pair = Pair(end=2)
    with pytest.raises(RuntimeError, match="state was lost"):
        pair.say(Record(OUTPUT, b""))
    pair.begin()
    with pytest.raises(RuntimeError, match="state was lost"):
        pair.say(Record(GRADIENT, b""))
    alone = Pair()
    with pytest.raises(RuntimeError, match="state was lost"):
        alone.say(Record(GRADIENT, b""))


@pytest.mark.parametrize("strategy", ["parallel", "sequential", "sflv2", "fedavg", "local"])
def test_a_reply_with_another_action_drops_its_client_with_a_reason(simulate, spoilt, strategy):
    def dance(reply):
        reply.content = flower_messages.content(
            replace(flower_messages.read(reply), action="dance")
        )
        return reply

    outcome = simulate(spoilt({2}, dance, 0), strategy=strategy, rounds=1)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [2]
    assert dropped["dropped"].tolist() == ["sent a 'dance' that nobody asked for"]


@pytest.mark.parametrize("strategy", ["fedavg", "local"])
def test_a_payload_where_none_is_due_drops_its_client(simulate, spoilt, strategy):
    def pay(reply):
        payload = Payload({"tokens": torch.zeros(2, 5, 16)}, {"labels": torch.zeros(2).long()})
        record = replace(flower_messages.read(reply), action=PAYLOAD, payload=payload.to_bytes())
        reply.content = flower_messages.content(record)
        return reply

    outcome = simulate(spoilt({2}, pay, 0), strategy=strategy, rounds=1)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [2]
    assert dropped["dropped"].tolist() == ["sent a payload that nobody asked for"]


@pytest.mark.parametrize("answers", [0, 1])
def test_a_half_served_payload_gives_its_room_back_with_or_without_an_answer(answers):
    pair = Pair(end=2)
    half, answer = pair.half(pair.begin())
    assert pair.graphs.used > 0
    found = {1: half.read(1, pair.link, answer)} if answers else {}
    served = half.resume(found)
    assert pair.graphs.used == 0
    assert list(served.cuts) == list(served.losses) == list(found)
    assert bool(served.gradient.any()) == bool(answers)


@pytest.mark.parametrize("strategy", ["sflv1", "parallel", "sflv2"])
def test_clients_lost_half_way_leave_nothing_waiting(simulate, strategy):
    """They fail when the output comes; what the server kept of them is let go."""

    def app(message, context):
        is_lost = context.node_config["partition-id"] in (1, 4)
        if is_lost and flower_messages.read(message).action == OUTPUT:
            raise RuntimeError("battery is empty")
        return client_app.app(message, context)

    graphs = GraphMemory()
    outcome = simulate(app, server={"graphs": graphs}, strategy=strategy, end=2, rounds=1)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [1, 4]
    assert dropped["dropped"].str.contains("battery is empty").all()
    assert graphs.used == 0
