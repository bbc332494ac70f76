"""U-shaped split: labels stay on the client, and nothing else changes."""

import copy
import json
import os
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from fl_split.codecs import Identity, parse_codec
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.records import HEAD, LOSS, PAYLOAD, Weights
from fl_split.exchange.split import Split
from fl_split.exchange.ushape import OUTPUT, OUTPUT_GRADIENT, ROW_WEIGHTS, TARGETS, UShape
from fl_split.exchange.whole import joined
from fl_split.models.costs import whole_flops
from fl_split.models.cut import insert
from fl_split.models.lenet import LeNet
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT
from fl_split.payload import Payload
from fl_split.seeds import StepId, generator
from simulations.clients import client_app
from simulations.engines.inline import InlineGrid
from simulations.runs import checkpoint
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator
from strategies import STRATEGIES
from strategies.server import flower_messages

SGD = {"head_optimizer": "sgd(lr=0.1)", "tail_optimizer": "sgd(lr=0.1)"}
ADAM = {"head_optimizer": "adam(lr=0.003)", "tail_optimizer": "adam(lr=0.003)"}
PRIVATE = "parallel(average_heads=False)"
SPLIT = [
    "mergesfl(slowest=0.5)",
    "parallel",
    PRIVATE,
    "sequential",
    "sflv1",
    "sflv2",
    "sflv3",
    "sglr",
]
DROPOUT = (
    "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4, "
    "hidden_dropout_prob=0.1)"
)
VARIED = {
    "end": 2,
    "codec": "adc(ratio=0.25, weighted_loss=True)",
    "downlink": "uniform(bits=6, rounding='stochastic')",
    "model": DROPOUT,
    "fraction": 0.7,
    **ADAM,
}
COUNTED = [
    "round", "accuracy", "loss", "train_loss", "clients", "samples", "client_steps",
    "payload_bytes_up", "payload_bytes_down", "head_bytes_up", "head_bytes_down",
    "smashed_bytes", "client_flops", "server_flops",
]  # fmt: skip
CODECS = [
    "identity()", "adc(ratio=0.3)", "adc(ratio=0.3, weighted_loss=True)", "topk(ratio=0.2)",
    "randtopk(ratio=0.2)", "c3sl()", "attended(ratio=0.5) | uniform(bits=4) | rans()",
    "bottlenet(ratio=0.5)", "fedlite()", "splitfc()", "slicer()",
    "jscc(ratios=[0.5, 0.25])", "semantic()",
    "lightsplit()", "nscsl()", "slfac()", "splitcom()",
]  # fmt: skip


VIT = ViT(hidden_size=24, num_hidden_layers=4, num_attention_heads=3, patch_size=4, image_size=8)
LENET = LeNet(image_size=28)
RESNET = ResNet18(width=4, small_images=True, image_size=16)


def build(spec):
    return spec.build(image_size=spec.image_size, channels=3, num_classes=5, seed=0)


@pytest.mark.parametrize(
    ("spec", "cut", "end"),
    [
        (VIT, 1, 2), (VIT, 1, "block4"), (VIT, 2, 4), (VIT, 3, "classifier"),
        (LENET, "conv1", "linear1"), (LENET, 3, 4), (RESNET, "stem", "stage4.2"),
        (RESNET, "stage2.1", "classifier"),
    ],
)  # fmt: skip
def test_head_middle_and_end_are_the_whole_model(spec, cut, end):
    model, size = build(spec), spec.image_size
    pixels = torch.randn(3, 3, size, size, generator=generator(0, "test"))
    found = model(pixels)
    logits = found if isinstance(found, torch.Tensor) else found.logits
    head, middle = spec.split(model, cut, end)
    assert torch.equal(joined(head, middle, pixels), logits)
    parts = [*head.parameters(), *middle.parameters()]
    assert {id(p) for p in parts} == {id(p) for p in model.parameters()}
    assert len(parts) == len(list(model.parameters()))
    assert head.output_bytes == 4 * middle(head(pixels)[0])[0].numel()
    plain = whole_flops(*spec.split(model, cut), 5)
    assert whole_flops(head, middle, 5) == plain
    tokens = head.smashed_shape[0]
    ours = head.flops(5), middle.flops(5, tokens), head.end.flops(5, tokens)
    assert sum(ours) == plain and min(ours) > 0


@pytest.mark.parametrize(("spec", "cut", "end"), [(VIT, 1, 3), (LENET, "conv1", "linear2")])
def test_flops_of_middle_and_end_equal_the_counter(spec, cut, end):
    model = build(spec)
    if spec.is_transformers:
        model.set_attn_implementation("eager")
    head, middle = spec.split(model, cut, end)
    for part, rows in ((middle, 3), (head.end, 2)):
        tokens = part.num_tokens or 5
        leaf = torch.randn(rows, tokens, part.width, requires_grad=True)
        with FlopCounterMode(display=False) as counter:
            output = part(leaf)
            assert part.forward_flops(rows, tokens) == counter.get_total_flops()
            output.sum().backward()
        assert part.flops(rows, tokens) == counter.get_total_flops()


@pytest.mark.parametrize(
    ("cut", "end", "message"),
    [
        (1, 1, r"end must be in 2\.\.3, .*\(block3, classifier\), got 1"),
        (1, 4, r"got 4"),
        (1, "block2", r"got 'block2'"),
        (1, "stage", r"got 'stage'"),
        (1, -1, r"end must be a number of stages, a stage's name, or 0, got -1"),
        (1, True, r"got True"),
    ],
)
def test_an_end_that_leaves_somebody_nothing_is_refused(simulate, cut, end, message):
    with pytest.raises(ValueError, match=message):
        simulate(cut=cut, end=end)


@pytest.mark.parametrize("spec", CODECS)
def test_what_is_sent_knows_no_labels_and_the_client_knows_its_targets(spec):
    codec, at, draw = parse_codec(spec), StepId(0, 1, 2, 3), generator(0, "test")
    head, middle = VIT.split(build(VIT), 1, 2)
    insert(head, middle, codec, 0)
    pixels, link = torch.randn(9, 3, 8, 8, generator=draw), Link(codec, Identity())
    sent, targets = set(), []
    for labels in (torch.arange(9) % 5, torch.arange(9) // 2, torch.zeros(9).long()):
        batch, memory = Batch(pixels, labels, 5), {}
        payload = UShape().smash(head, codec, batch, at, memory)
        sent.add(link.up(payload, at))
        labelled = Split().smash(head, codec, batch, at, {})
        known = codec.decode(labelled)
        assert all(torch.equal(v, labelled.carried[k]) for k, v in payload.carried.items())
        assert torch.equal(memory[TARGETS], known.targets)
        assert (ROW_WEIGHTS in memory) == (known.weights is not None)
        assert known.weights is None or torch.equal(memory[ROW_WEIGHTS], known.weights)
        assert link.arrive(next(iter(sent)), at, middle).rows == len(memory[TARGETS])
        targets.append(memory[TARGETS])
    assert len(sent) == 1
    assert not torch.equal(targets[0], targets[1])


@pytest.mark.parametrize("codec", ["identity()", "adc(ratio=0.25)"])
def test_another_labelling_sends_the_same_first_payload(simulate, codec):
    def first_payloads(shift):
        found = {}

        def watch(message, context):
            reply = client_app.app(message, context)
            record = flower_messages.read(reply)
            if record.action == PAYLOAD:
                found.setdefault(context.node_config["partition-id"], bytes(record.sent()))
            return reply

        def start(worker, clients, timeout):
            data = worker.data
            labels = (data.labels + shift) % data.num_classes
            return InlineGrid(
                watch, replace(worker, data=replace(data, labels=labels)), clients, timeout
            )

        outcome = simulate(session=start, end=2, codec=codec, rounds=1, local_steps=1)
        return found, outcome

    (usual, trained), (shifted, otherwise) = first_payloads(0), first_payloads(3)
    assert usual == shifted and len(usual) == 6
    assert not trained.equals(otherwise)


@pytest.mark.parametrize("optimizers", [SGD, ADAM], ids=["sgd", "adam"])
@pytest.mark.parametrize("strategy", ["sflv1", "fedavg", "centralised", "local"])
def test_where_nobody_shares_a_tail_the_end_may_be_anywhere(simulate, strategy, optimizers):
    """Bit for bit, any number of clients: arithmetic has moved and nothing else."""
    without = simulate(strategy=strategy, **optimizers)
    for end in (2, "classifier"):
        other = simulate(strategy=strategy, end=end, **optimizers)
        assert other.equals(without)
        same = ["accuracy", "loss", "train_loss", "samples"]
        assert other.rounds[same].equals(without.rounds[same])
        for found in (other, without):
            found.flops = found.rounds["client_flops"] + found.rounds["server_flops"]
        assert other.flops.equals(without.flops)


def test_fedavg_equals_sflv1_in_a_u_shape(simulate):
    changes = {"end": 2, "head_optimizer": "adam(lr=0.01)", "tail_optimizer": "sgd(lr=0.1)"}
    assert simulate(strategy="sflv1", **changes).equals(simulate(strategy="fedavg", **changes))


@pytest.mark.parametrize("strategy", [k for k, v in STRATEGIES.items() if v.works_in_u_shape])
def test_one_client_trains_what_it_trains_without_an_end(simulate, strategy):
    one = {"clients": 1, "rounds": 1, "partition": "iid", "batch_size": 256, **SGD}
    without = simulate(strategy=strategy, **one)
    assert simulate(strategy=strategy, end=2, **one).equals(without)


def test_an_end_handed_over_with_the_head_equals_a_shared_one(simulate):
    assert simulate(strategy="sequential", end=2, **SGD).equals(
        simulate(strategy="sequential", **SGD)
    )


def test_the_mean_of_ends_after_one_sgd_step_is_the_shared_step(simulate):
    """w - lr sum_k n_k/n g_k, whether weights or gradients are averaged."""
    one = {"strategy": "parallel", "rounds": 1, "local_steps": 1, "batch_size": 2000, **SGD}
    first, second = simulate(**one), simulate(end=2, **one)
    for name, value in first.model.items():
        torch.testing.assert_close(second.model[name], value, atol=2e-6, rtol=1e-4)


@pytest.mark.parametrize("strategy", ["parallel", "sflv2(order='cyclic', phi=1)"])
def test_shared_middles_and_own_ends_by_the_formulas(simulate, strategy):
    """Two clients, three exchanges, SGD, written out on whole models."""
    values = {
        "clients": 2, "rounds": 1, "local_steps": 3, "batch_size": 50, "strategy": strategy,
        "partition": "dirichlet(alpha=0.5)", "end": 2, "cut": 1,
        "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
        "head_optimizer": "sgd(lr=0.5)", "tail_optimizer": "sgd(lr=0.3)",
    }  # fmt: skip
    outcome, setup = simulate(**values), prepare(Experiment.from_dict(values))
    counts = [len(rows) for rows in setup.train.partitions]
    shares = [count / sum(counts) for count in counts]
    models = [copy.deepcopy(setup.model) for _ in counts]
    is_middle = {name: "layers.1." in name for name, _ in models[0].named_parameters()}

    @torch.no_grad()
    def move(name, gradient, rate, where):
        for model in where:
            model.get_parameter(name).sub_(rate * gradient)

    for step in range(3):
        joint = {}
        for client, rows in enumerate(setup.train.partitions):
            chosen = setup.epochs().batch(StepId(0, 1, client, step), len(rows))
            pixels, labels = setup.train.batch(rows[chosen])
            model = models[client]
            model.zero_grad()
            functional.cross_entropy(model(pixels).logits, labels).backward()
            for name, parameter in model.named_parameters():
                gradient = parameter.grad.clone()
                if not is_middle[name]:
                    move(name, gradient, 0.5, [model])
                elif strategy == "parallel":
                    joint[name] = joint.get(name, 0) + shares[client] * gradient
                else:
                    move(name, gradient, 0.3, models)
        for name, gradient in joint.items():
            move(name, gradient, 0.3, models)
    for name, value in outcome.model.items():
        mean = sum(s * m.get_parameter(name) for s, m in zip(shares, models, strict=True))
        torch.testing.assert_close(value, mean.detach(), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("strategy", ["parallel", "sflv1", "sflv2"])
def test_four_transfers_are_counted_from_their_shapes(simulate, strategy):
    """5 tokens of 16 numbers each way; a tensor's header is 7 bytes, 12 of shape, its name."""
    changes = {"strategy": strategy, "batch_size": 50, "rounds": 1, "codec": "fp16()"}
    rows = simulate(end=2, **changes).clients
    numbers, header = 5 * 16, 1 + 3 + 4 * 3 + len("tokens")
    labels = 3 + 4 + len("labels")  # all zero: no data
    up = 2 * numbers * rows["samples"] + 4 * numbers * rows["samples"]
    up += (2 * header + labels) * rows["steps"]
    assert rows["payload_bytes_up"].tolist() == up.tolist()
    down = 2 * 4 * numbers * rows["samples"] + 2 * header * rows["steps"]
    assert rows["payload_bytes_down"].tolist() == down.tolist()
    assert (rows["smashed_bytes"] == 2 * 4 * numbers * rows["samples"]).all()
    packed = simulate(end=2, **{**changes, "codec": "identity()"}, downlink="fp16()").clients
    halved = (packed["payload_bytes_down"] - 2 * header * packed["steps"]) / packed["samples"]
    assert np.allclose(halved, 2 * 2 * numbers)
    assert (simulate(end=2, **{**changes, "codec": "identity()"}).rounds["ratio"] < 1.005).all()


def test_the_end_travels_and_counts_with_the_head(simulate):
    with_end, without = simulate(end=2, rounds=1), simulate(rounds=1)
    assert with_end.rounds["head_bytes_up"][0] > 1.5 * without.rounds["head_bytes_up"][0]
    private = simulate(end=2, rounds=3, strategy=PRIVATE)
    assert private.rounds["head_bytes_up"].sum() == private.rounds["head_bytes_down"].sum() == 0
    assert not private.equals(simulate(end=2, rounds=3))


@pytest.mark.parametrize("codec", ["adc(ratio=0.3)", "attended(ratio=0.5) | uniform(bits=8)"])
@pytest.mark.parametrize("strategy", ["parallel", "sflv1", "sflv2"])
def test_compressed_u_shapes_learn(simulate, strategy, codec):
    outcome = simulate(
        strategy=strategy, codec=codec, downlink="uniform(bits=8)", end="classifier", rounds=6,
        local_steps=0, partition="iid()", **ADAM,
    )  # fmt: skip
    losses = outcome.rounds["train_loss"].tolist()
    assert losses[-1] < losses[0] - 0.1
    assert (outcome.rounds["ratio"] < 0.4).all()


class Watched(GraphMemory):
    """Room that notes what is asked of it; it has none for stacks."""

    def __init__(self, limit):
        super().__init__(limit)
        self.sizes, self.kept, self.most = [], [], 0

    def take(self, size):
        found = super().take(size)
        self.sizes.append(size)
        self.kept.append(found)
        self.most = max(self.most, self.used)
        return found


def with_room(graphs):
    """A session of the inline engine whose clients share this room for graphs."""

    def start(worker, clients, timeout):
        return InlineGrid(client_app.app, replace(worker, graphs=graphs), clients, timeout)

    return start


@pytest.mark.parametrize("strategy", ["parallel", PRIVATE, "sflv1", "sflv2", "sglr(phi=0.0)"])
def test_clients_served_through_their_state_equal_live_ones(
    simulate, reference, through_state, strategy
):
    """Nor does it matter whether any graph survives."""
    live = reference(strategy=strategy, **VARIED)
    other = through_state(strategy=strategy, **VARIED)
    assert live.equals(other)
    assert live.rounds[COUNTED].equals(other.rounds[COUNTED])
    none = Watched(0)
    repeated = simulate(strategy=strategy, session=with_room(none), **VARIED)
    assert none.sizes and not any(none.kept)
    assert live.equals(repeated)


@pytest.mark.parametrize("strategy", ["parallel", "sflv1", "sglr"])
@pytest.mark.parametrize("room", [0, 1.5])
def test_middles_whose_graphs_find_no_room_run_again(simulate, strategy, room):
    """Same bits; of graphs that all are of one size as many are kept as fit, whatever ends."""
    changes = {"strategy": strategy, "end": 2, "rounds": 1, "local_steps": 3, "batch_size": 50}
    changes |= {"codec": "fp16()", "cut": 1, "partition": "iid"}
    # 65 tokens a sample: the payload of every client is large enough to be served by itself.
    changes["model"] = DROPOUT.replace("patch_size=4", "patch_size=1")
    plenty = Watched(2**30)
    live = simulate(server={"graphs": plenty}, **changes)
    assert all(plenty.kept) and len(plenty.kept) == 18 and len(set(plenty.sizes)) == 1
    tight = Watched(int(room * plenty.sizes[0]))
    assert live.equals(simulate(server={"graphs": tight}, **changes))
    assert tight.most <= tight.limit and tight.used == plenty.used == 0
    assert not any(tight.kept) if room == 0 else any(tight.kept) and not all(tight.kept)


@pytest.mark.slow
def test_ray_equals_inline(reference, on_ray):
    for strategy in SPLIT:
        codec = "fp16()" if strategy == "sglr" else VARIED["codec"]
        changes = {**VARIED, "strategy": strategy, "codec": codec}
        inline, ray = reference(**changes), on_ray(**changes)
        assert inline.equals(ray), strategy
        assert inline.rounds[COUNTED].equals(ray.rounds[COUNTED]), strategy


@pytest.mark.parametrize("strategy", ["parallel", "sflv1"])
def test_the_number_of_server_threads_changes_nothing(simulate, strategy):
    changes = {"strategy": strategy, **VARIED, "clients": 20, "batch_size": 16}
    one, four = (simulate(server={"threads": threads}, **changes) for threads in (1, 4))
    assert one.equals(four)
    assert one.rounds[COUNTED].equals(four.rounds[COUNTED])


@pytest.mark.parametrize("strategy", [PRIVATE, "sflv1", "sflv2"])
def test_stopped_and_resumed_equals_never_stopped(simulate, resume, tmp_path, strategy):
    changes = {**VARIED, "strategy": strategy, "rounds": 3, "checkpoint_every": 1}
    whole = simulate(**changes)

    def stop(row, report):
        if row["round"] == 2:
            raise KeyError("stop")

    with pytest.raises(KeyError):
        simulate(watch=stop, **changes)
    half = type(whole)(tmp_path / "run2")
    resume(half)
    assert half.equals(whole)
    assert half.rounds[COUNTED].equals(whole.rounds[COUNTED])


class Older:
    """An experiment as it was written before there were ends."""

    def __init__(self, experiment):
        self.experiment = experiment

    def model_dump(self, exclude):
        return self.experiment.model_dump(exclude={*exclude, "end"})

    def __getattr__(self, name):
        return getattr(self.experiment, name)


def test_a_run_from_before_there_were_ends_goes_on(simulate, reference, resume, tmp_path):
    def stop(row, report):
        raise KeyError("stop")

    with pytest.raises(KeyError):
        simulate(watch=stop, checkpoint_every=1)
    folder = tmp_path / "run1"
    experiment, found = checkpoint.read(folder)
    found.write(folder, Older(experiment))
    with safe_open(folder / checkpoint.FILE, "pt") as file:
        assert "end" not in json.loads(file.metadata()["experiment"])
    whole = reference()
    half = type(whole)(folder)
    resume(half)
    assert half.equals(whole)


def fail(reply):
    raise RuntimeError("battery is empty")


def changed(reply, **changes):
    """Have a reply say something else."""
    reply.content = flower_messages.content(replace(flower_messages.read(reply), **changes))
    return reply


def no_gradient(reply):
    """Put a NaN into whatever the reply carries."""
    record = flower_messages.read(reply)
    if record.payload is None:
        head = record.weights[HEAD].numpy() * np.nan if HEAD in record.weights else None
        return reply if head is None else changed(reply, weights={HEAD: Weights.of(head)})
    payload = Payload.from_bytes(record.payload)
    payload.carried["tokens"][0, 0, 0] = torch.nan
    return changed(reply, payload=payload.to_bytes())


def no_loss(reply):
    record = flower_messages.read(reply)
    if record.action != OUTPUT_GRADIENT:
        return no_gradient(reply)
    return changed(reply, numbers={**record.numbers, LOSS: float("nan")})


def another_shape(reply):
    if flower_messages.read(reply).payload is None:
        return changed(reply, weights={HEAD: Weights.of(np.ones((2, 3), np.float32))})
    return changed(reply, payload=Payload({"tokens": torch.ones(2, 3)}).to_bytes())


def another_action(reply):
    return changed(reply, action="dance")


@pytest.mark.parametrize("strategy", [PRIVATE, "sflv1", "sflv2"])
@pytest.mark.parametrize("after", [0, 1, 2])
def test_clients_that_fail_in_any_message_are_dropped(simulate, spoilt, strategy, after):
    ways = [
        (fail, "battery"),
        (no_gradient, "finite"),
        (no_loss, "finite"),
        (another_shape, "sent "),
        (another_action, "sent a 'dance'"),
    ]
    spoiling = spoilt.several([spoilt({k}, way, after) for k, (way, _) in enumerate(ways)])
    changes = {"strategy": strategy, "batch_size": 128, "end": 2}
    graphs = GraphMemory()
    outcome = simulate(spoiling, server={"graphs": graphs}, **changes)
    assert graphs.used == 0  # nothing is left waiting for an answer
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [0, 1, 2, 3, 4] * 2
    for client, reason in zip(dropped["client"], dropped["dropped"], strict=True):
        assert ways[client][1] in reason
    assert all(value.isfinite().all() for value in outcome.model.values())
    assert outcome.summary["status"] == "complete"


@pytest.mark.parametrize("strategy", ["parallel", "sflv1", "sflv2"])
def test_a_loss_that_is_not_finite_drops_its_client(simulate, spoilt, strategy):
    def unhappy(reply):
        return no_loss(reply) if flower_messages.read(reply).action == OUTPUT_GRADIENT else reply

    outcome = simulate(spoilt({1}, unhappy, 0), strategy=strategy, end=2)
    dropped = outcome.clients.query("dropped != ''")
    assert dropped["client"].tolist() == [1, 1]
    assert dropped["dropped"].str.contains("a loss that is not finite").all()


def test_a_client_without_the_first_half_of_an_exchange_says_so(simulate):
    """As after a worker lost its clients."""

    def forgetful(message, context):
        is_ours = context.node_config["partition-id"] == 1
        if is_ours and flower_messages.read(message).action == OUTPUT:
            context.client = None
        return client_app.app(message, context)

    dropped = simulate(forgetful, end=2, rounds=1).clients.query("dropped != ''")
    assert dropped["client"].tolist() == [1]
    assert "no exchange in progress" in dropped["dropped"].iloc[0]


@pytest.mark.parametrize("strategy", ["parallel", "sflv1"])
def test_batch_norm_in_every_part(simulate, strategy):
    changes = {
        "model": "resnet18(width=2, small_images=True)", "cut": "stage1.1", "clients": 2,
        "rounds": 1, "local_steps": 2, "strategy": strategy, **SGD,
    }  # fmt: skip
    outcome = simulate(end="stage4.1", **changes)
    if strategy == "sflv1":
        assert outcome.equals(simulate(**changes))
    assert all(value.isfinite().all() for value in outcome.model.values())


@pytest.mark.parametrize(
    "changes",
    [
        {"strategy": "parallel()"},
        {"strategy": PRIVATE, "codec": "c3sl(factor=4)"},
        {"strategy": "sflv2()", "downlink": "fp16()"},
        {"strategy": "fedavg()"},
        {"strategy": "sflv1()", "model": "lenet(image_size=16)", "cut": 1, "end": "linear2"},
    ],
    ids=str,
)
def test_the_estimate_is_what_a_run_then_reports(simulate, changes):
    found = simulate(**{"end": 2, **changes}).summary
    cost = Estimator()(prepare(Experiment.from_dict(found["experiment"])))
    assert cost.payload_bytes == found["payload_bytes_up"] + found["payload_bytes_down"]
    assert cost.head_bytes == found["head_bytes_up"] + found["head_bytes_down"]
    assert cost.client_flops == found["client_flops"]
    kept = found["activation_bytes"]
    assert 0 < kept["head"] <= kept["whole"]


@pytest.mark.slow
@pytest.mark.parametrize(("strategy", "number"), [("parallel", 2), (PRIVATE, 18)])
def test_a_worker_killed_in_either_half_changes_nothing(
    simulate, on_ray, tmp_path, strategy, number
):
    changes = {**VARIED, "strategy": strategy, "local_steps": 11, "batch_size": 32, "rounds": 1}
    undisturbed, marker, seen = simulate(**changes), tmp_path / "killed", 0
    victim = int(undisturbed.clients["client"][0])

    def app(message, context):
        nonlocal seen
        is_training = message.metadata.message_type.startswith(flower_messages.TRAIN)
        if is_training and context.node_config["partition-id"] == victim:
            seen += 1
            if seen == number and not marker.exists():
                marker.touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return client_app.app(message, context)

    disturbed = on_ray(app, **changes)
    assert marker.exists() and not disturbed.clients["dropped"].any()
    assert disturbed.equals(undisturbed)
    assert disturbed.rounds[COUNTED].equals(undisturbed.rounds[COUNTED])
