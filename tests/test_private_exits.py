"""Private exits: whose weights travel, bytes, bits, answers of owners, resumes, what is refused."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from fl_split.exchange.whole import predict_by_exit
from fl_split.exits import EXITS, exits_of, insert_exits
from fl_split.flat import Flat
from fl_split.models.vit import ViT
from fl_split.specs import parse
from simulations.clients import kept_exits
from simulations.inference import trained
from simulations.inference.ways import ways_of
from simulations.runs.checkpoint import read_experiment
from simulations.runs.experiment import Experiment
from simulations.runs.private_exits import FILE, read
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator

PRIVATE = "plain(private=True)"
SMALL = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
WEIGHTS = 2 * 16 + 16 * 10 + 10
"""Of an exit of the tiny model: norm, classifier."""


def head_with(spec, cut=2):
    module = SMALL.build(image_size=8, channels=1, num_classes=4, seed=0)
    head, tail = SMALL.split(module.train(), cut)
    insert_exits(head, tail, parse(spec, EXITS), 4, 0)
    return head


def exits_by_client(outcome):
    """Return all weights of each client's exits, by client, in one vector."""
    found = {}
    for name, weight in sorted(load_file(outcome.folder / FILE).items()):
        found.setdefault(int(name.split(".")[0].removeprefix("client")), []).append(weight)
    return {client: torch.cat([one.flatten() for one in of]) for client, of in found.items()}


def same_exits(one, other):
    mine, its = exits_by_client(one), exits_by_client(other)
    return mine.keys() == its.keys() and all(torch.equal(mine[k], its[k]) for k in mine)


@pytest.mark.parametrize("spec", [PRIVATE, "recursive(private=True)"])
def test_a_vector_of_weights_knows_what_travels(spec):
    head, without = head_with(spec), head_with("none()")
    flat, alone = Flat(head), Flat(without)
    exits = exits_of(head)
    assert flat.num_private == sum(one.numel() for one in exits.parameters())
    assert torch.equal(flat.travelling, alone.vector) and alone.num_private == 0
    flat.load(torch.zeros_like(alone.vector))
    assert not flat.numpy().any() and len(flat.numpy()) == len(alone.numpy())
    assert all(bool(one.weight.any()) for one in exits.classifiers)
    flat.load_private(torch.full((flat.num_private,), 2.0))
    assert bool((exits.classifiers[0].weight == 2.0).all())
    with pytest.raises(ValueError, match="weights must be a vector of"):
        flat.load(torch.zeros_like(flat.vector))


def test_bytes_of_heads_are_those_without_exits(simulate):
    """All else crosses as with exits that travel: each of 6 clients had 4 bytes for each weight."""
    keys = {"rounds": 1, "fraction": 1.0}
    runs = [simulate(**keys, exits=one) for one in (PRIVATE, "plain()", "none()")]
    private, shared, without = (one.rounds for one in runs)
    for way in ("head_bytes_up", "head_bytes_down"):
        assert private[way].equals(without[way])
        assert (shared[way] - private[way]).tolist() == [6 * 4 * WEIGHTS]
    cost = Estimator()(prepare(read_experiment(runs[0].folder, {})))
    assert cost.head_bytes == private["head_bytes_up"].sum() + private["head_bytes_down"].sum()
    for column in ("payload_bytes_up", "payload_bytes_down", "client_flops"):
        assert private[column].equals(shared[column])


@pytest.mark.parametrize("keys", [{}, {"end": 2}, {"strategy": "fedavg()"}])
def test_detached_ones_leave_trunk_and_tail_as_without_exits(keys, simulate):
    found = simulate(exits="plain(private=True, detach=True)", **keys)
    alone = simulate(**keys)
    assert found.equals(alone)
    assert found.rounds["loss"].equals(alone.rounds["loss"])
    assert found.rounds["drift"].equals(alone.rounds["drift"])


@pytest.mark.parametrize("keys", [{}, {"strategy": "fedavg()", "clip": "norm(limit=0.1)"}])
def test_of_one_client_they_are_the_averaged_ones(keys, simulate):
    """Both begin each round with a fresh optimiser."""
    private, shared = (simulate(exits=one, clients=1, **keys) for one in (PRIVATE, "plain()"))
    assert private.equals(shared)
    for column in ("accuracy_exit1", "train_loss", "loss"):
        assert private.rounds[column].equals(shared.rounds[column])
    kept = load_file(private.folder / FILE)
    averaged = load_file(shared.folder / "codec.safetensors")
    assert {name.replace("client0.", "beside.0.") for name in kept} == {*averaged}
    for name, weight in kept.items():
        assert torch.equal(weight, averaged[name.replace("client0.", "beside.0.")])


def test_each_answers_as_its_own_client_has_taught_it(simulate):
    """A client that holds one class learns to say nothing else, right on that class's share."""
    found = simulate(
        exits="plain(private=True, detach=True)",
        clients=2,
        partition="pathological(num_classes_per_partition=1)",
        head_optimizer="adam(lr=0.1)",
    )
    held = pd.read_csv(found.folder / "partition.csv").set_index("client")["class"]
    labels = prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""})).test.labels
    assert held[0] != held[1]
    shares = [float((labels == int(held[client])).mean()) for client in (0, 1)]
    assert found.rounds["accuracy_exit1"].iloc[-1] == pytest.approx(np.mean(shares))
    first, second = exits_by_client(found).values()
    assert not torch.equal(first, second)


def test_who_is_not_chosen_keeps_what_it_has(simulate):
    """At first that is what all were drawn with."""
    results = []
    found = simulate(
        exits=PRIVATE, fraction=0.4, rounds=3, watch=lambda row, result: results.append(result)
    )
    setup = prepare(Experiment.from_dict({**found.summary["experiment"], "out": ""}))
    drawn = Flat(setup.head).private.numpy()
    before = dict.fromkeys(range(6), drawn)
    for result in results:
        assert {*result.exits} == {*range(6)} and len(result.traffic) < 6
        now = {client: weights.numpy() for client, weights in result.exits.items()}
        for client in range(6):
            assert np.array_equal(now[client], before[client]) == (client not in result.traffic)
        before = now
    assert any(np.array_equal(one, drawn) for one in before.values())
    own = read(found.folder, exits_of(setup.head))
    for client, weights in before.items():
        whole = torch.cat([one.detach().flatten() for one in own[client].parameters()])
        assert np.array_equal(whole.numpy(), weights)


def test_on_a_trunk_that_stays_they_are_those_of_local_training(simulate):
    """Where nothing else learns, each client goes on from its own exits, round after round."""
    keys = {"phases": "phase(train='exits')", "clients": 3, "rounds": 3, "head_optimizer": "sgd()"}
    found, local = [], []
    private = simulate(exits=PRIVATE, watch=lambda row, one: found.append(one.exits), **keys)
    keys["strategy"] = "local()"
    alone = simulate(exits="plain()", watch=lambda row, one: local.append(one.own), **keys)
    for mine, its in zip(found, local, strict=True):
        for client, weights in mine.items():
            assert np.array_equal(weights.numpy(), its[client]["head"].numpy()[:WEIGHTS])
    for column in ("accuracy_exit1", "train_loss"):
        assert private.rounds[column].equals(alone.rounds[column])


def test_a_phase_of_exits_moves_nothing_that_travels(simulate):
    phases = "phase(rounds=1, train='trunk') | phase(train='exits')"
    keys = {"clients": 2, "head_optimizer": "adamw(lr=0.01, weight_decay=0.1)"}
    staged, alone = simulate(exits=PRIVATE, phases=phases, **keys), simulate(rounds=1, **keys)
    assert staged.equals(alone)
    rounds = staged.rounds
    assert rounds["payload_bytes_up"].tolist() == [alone.rounds["payload_bytes_up"][0], 0]
    assert rounds["accuracy"][0] == rounds["accuracy"][1]
    assert rounds["accuracy_exit1"][0] != rounds["accuracy_exit1"][1]


@pytest.mark.parametrize("strategy", ["parallel()", "fedavg()"])
def test_a_stopped_run_and_bare_states_give_the_same(strategy, simulate, through_state, resume):
    changes = {"exits": PRIVATE, "fraction": 0.5, "rounds": 3, "strategy": strategy}
    changes["checkpoint_every"] = 1

    def stop(row, result):
        if row["round"] == 2:
            raise KeyboardInterrupt

    whole = simulate(**changes)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **changes)
    half = type(whole)(whole.folder.parent / "run2")
    (half.folder / FILE).unlink()
    resume(half)
    for other in (half, through_state(**changes)):
        assert whole.equals(other) and same_exits(whole, other)
        assert whole.rounds["accuracy_exit1"].equals(other.rounds["accuracy_exit1"])


def test_a_resume_that_has_nothing_left_to_do_writes_them_too(simulate, resume):
    def stop(row, result):
        if row["round"] == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, exits=PRIVATE, checkpoint_every=1)
    half = simulate(exits=PRIVATE)
    stopped = type(half)(half.folder.parent / "run1")
    (stopped.folder / FILE).unlink()
    resume(stopped)
    assert same_exits(stopped, half)


@pytest.mark.slow
def test_ray_gives_the_same(on_ray, simulate):
    changes = {"exits": "recursive(private=True)", "end": 2, "fraction": 0.5}
    inline, other = simulate(**changes), on_ray(**changes)
    assert inline.equals(other) and same_exits(inline, other)
    assert inline.rounds["accuracy_exit1"].equals(other.rounds["accuracy_exit1"])


def test_an_image_is_answered_by_its_owner_s_exits(simulate):
    """And the columns of training are means over clients, each on all test images."""
    run = simulate(exits=PRIVATE, cut=2, holdout=0.3, clients=3)
    found = trained.load(run.folder)
    numbers = np.arange(len(found.test.labels))
    pixels, labels = found.test.batch(numbers)
    weights = load_file(run.folder / FILE)
    by_client, rights = [], []
    for client in range(3):
        head = prepare(found.experiment).head
        head.load_state_dict(found.head.state_dict())
        own = {
            k.partition(".")[2]: v for k, v in weights.items() if k.startswith(f"client{client}.")
        }
        exits_of(head).load_state_dict(own)
        answers = predict_by_exit(head.eval(), found.tail, pixels)[1:]
        by_client.append(torch.stack([one.softmax(dim=1) for one in answers]).numpy())
        rights.append([float((one.argmax(1) == labels).float().mean()) for one in answers])
    for number in (1, 2):
        mean = np.mean([one[number - 1] for one in rights])
        assert run.rounds[f"accuracy_exit{number}"].iloc[-1] == pytest.approx(mean)
    ways = ways_of(found, found.test, numbers, found.experiment.parts.link())
    expected = np.stack(by_client)[numbers % 3, :, numbers].transpose(1, 0, 2)
    np.testing.assert_allclose(ways.local, expected, atol=1e-6)
    assert np.abs(by_client[0] - by_client[1]).max() > 1e-3
    rows, owner = found.held_out
    held = ways_of(found, found.setup.train, rows, found.experiment.parts.link(), owner)
    own = found.exits_of_clients[int(owner[-1])]
    last = found.setup.train.batch(rows[-1:])[0]
    answers = predict_by_exit(found.head, found.tail, last, private=[own])[1:]
    for answer, said in zip(answers, held.local[:, -1], strict=True):
        np.testing.assert_allclose(said, answer[0].softmax(0), atol=1e-6)


def test_a_round_that_diverges_leaves_no_trace_in_what_is_kept():
    head = Flat(head_with(PRIVATE))
    memory = {"exits": torch.ones(head.num_private)}
    head.private[0] = torch.nan
    with pytest.raises(ValueError, match="private exits that are not finite"):
        kept_exits.keep(memory, head)
    assert torch.equal(kept_exits.kept(memory, head.module), torch.ones(head.num_private))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": "plain(after='1, 3', private=True)"}, "got 3, whose exit is the server's"),
        ({"strategy": "local()"}, "leaves whole heads with the clients, and exits with them"),
        ({"strategy": "parallel(average_heads=False)"}, "leaves whole heads with the clients"),
        ({"strategy": "centralised()"}, "trains on the server, and no client has exits to keep"),
        ({"strategy": "scaffold()"}, "corrects whole models by what all clients share"),
        ({"strategy": "fedprox(mu=0.1)"}, "corrects whole models by what all clients share"),
        ({"ema": 0.9}, "ema averages what travels over rounds"),
    ],
)
def test_what_no_client_can_keep_is_refused(changes, message):
    keys = {"exits": PRIVATE, "cut": 2, **changes}
    with pytest.raises(ValueError, match=f"exits: .*private: .*{message}"):
        prepare(Experiment.from_dict(keys))
