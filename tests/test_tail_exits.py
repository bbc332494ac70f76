"""Exits behind the cut: gradients against one whole model, operations, bytes, runs."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from fl_split.codecs import Identity, Received, parse_codec
from fl_split.exchange.graphs import GraphMemory
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.exchange.tail_loss import joint_loss
from fl_split.exchange.whole import Whole, predict_by_exit
from fl_split.exits import EXITS, exits_of, insert_exits
from fl_split.flat import Flat
from fl_split.models.beside import Trace
from fl_split.models.costs import whole_flops
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT
from fl_split.recipe.loss import CrossEntropy
from fl_split.recipe.phases import parse_phases
from fl_split.seeds import StepId
from fl_split.specs import parse
from simulations.inference import trained
from simulations.inference.ways import ways_of
from simulations.runs.experiment import Experiment
from simulations.runs.saved_model import load_halves
from simulations.runs.setup import prepare

SMALL = ViT(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)
BOTH, BEHIND = "plain(after='1, 2, 3', weight=0.3)", "plain(after='2, 3')"
AT = StepId(0, 1, 0, 0)
LINK = Link(Identity(), Identity())
SPLIT = Split()


def halves(spec, cut=1, model=SMALL, channels=1):
    module = model.build(image_size=8, channels=channels, num_classes=4, seed=0)
    head, tail = model.split(module.train(), cut)
    insert_exits(head, tail, parse(spec, EXITS), 4, 0)
    return head, tail


def batch(size=5, channels=1, seed=1):
    draw = torch.Generator().manual_seed(seed)
    pixels = torch.randn(size, channels, 8, 8, generator=draw)
    return Batch(pixels, torch.arange(size) % 4, 4)


def by_hand(head, tail, found):
    """The server's loss, and those of all exits, read off the blocks one after the other."""
    tokens, losses = head.embeddings(found.pixels), []
    for number, block in enumerate([*head.blocks, *tail.blocks], start=1):
        tokens = block(tokens)
        for exits in filter(None, map(exits_of, (head, tail))):
            if number in exits.after:
                place = exits.after.index(number)
                read = tokens[:, 0].detach() if exits.detach else tokens[:, 0]
                logits = exits.classifiers[place](exits.norms[place](read))
                losses.append(exits.weight * functional.cross_entropy(logits, found.labels))
    logits = tail.classifiers[0](tail.norm(tokens)[:, 0])
    return functional.cross_entropy(logits, found.labels), losses


@pytest.mark.parametrize("spec", [BOTH, BEHIND, "plain(after='2, 3', detach=True)"])
def test_gradients_are_those_of_one_model_with_the_sum_of_losses(spec):
    """Of both halves, split and whole; the loss that is told is that of the last classifier."""
    head, tail = halves(spec)
    of_server, losses = by_hand(head, tail, batch())
    assert len(losses) == sum(len(exits_of(half).after) for half in (head, tail) if half.beside)
    gradients = torch.autograd.grad(
        of_server + sum(losses), [*head.parameters(), *tail.parameters()]
    )
    expected = torch.cat([one.flatten() for one in gradients])
    for exchange in (Split(), Whole()):
        step = exchange.step(Flat(head), Flat(tail), LINK, batch(), AT)
        torch.testing.assert_close(torch.cat([step.of_head, step.of_tail]), expected)
        assert step.loss == pytest.approx(float(of_server.detach()))


def test_a_detached_exit_leaves_the_trunk_alone_bit_for_bit():
    (alone, tail), (head, tail_too) = halves("none()"), halves("plain(after='2, 3', detach=True)")
    first = Split().step(Flat(alone), Flat(tail), LINK, batch(), AT)
    second = Split().step(Flat(head), Flat(tail_too), LINK, batch(), AT)
    beside = sum(one.numel() for one in tail_too.beside.parameters())
    assert torch.equal(second.of_head, first.of_head)
    assert torch.equal(second.of_tail[beside:], first.of_tail)
    assert bool(second.of_tail[:beside].any())


def served(tail, clients, exchange=SPLIT, codec="identity()"):
    """What a server makes of clients, (number, weight), each with images of its own."""
    head, link = halves("none()")[0], Link(parse_codec(codec), Identity())
    arrivals = {}
    for number in clients:
        at = replace(AT, client=number)
        sent = link.up(exchange.smash(head, link.codec, batch(3 + number, seed=number), at, {}), at)
        arrivals[number] = link.arrive(sent, at, tail)
    return exchange.serve(Flat(tail), arrivals, clients, AT, GraphMemory())


@pytest.mark.parametrize("codec", ["identity()", "c3sl(factor=2)"])
def test_clients_that_are_served_together_learn_as_if_alone(codec):
    """Weights of clients scale exits as they scale the tail; cut gradients have none."""
    _, tail = halves(BEHIND)
    together = served(tail, {0: 0.25, 1: 0.75}, codec=codec)
    each = [served(tail, {number: 1.0}, codec=codec) for number in (0, 1)]
    total = 0.25 * each[0].gradient + 0.75 * each[1].gradient
    torch.testing.assert_close(together.gradient, total)
    assert together.flops == sum(one.flops for one in each)
    for number, alone in enumerate(each):
        assert together.losses[number] == pytest.approx(alone.losses[number])
        for name, cut in alone.cuts[number].carried.items():
            torch.testing.assert_close(together.cuts[number].carried[name], cut)


class Contrast(CrossEntropy):
    """As an algorithm has it that adds a term to the loss of the last classifier."""

    def of(self, logits, received):
        return super().of(logits, received) + 5.0


def test_exits_have_the_smoothed_loss_and_no_term_that_an_algorithm_adds():
    exits, targets = exits_of(halves(BOTH)[1]), torch.tensor([0, 3])
    of_tail, *of_exits = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    received = [Received(torch.zeros(2, 5, 16), targets)]
    joint, losses = joint_loss(Contrast(0.1), exits, [of_tail, *of_exits], received, [0.5])
    own, *others = (
        float(functional.cross_entropy(one, targets, label_smoothing=0.1))
        for one in (of_tail, *of_exits)
    )
    assert losses == pytest.approx([own + 5.0])
    assert float(joint) == pytest.approx(0.5 * (own + 5.0 + 0.3 * sum(others)))


def test_an_exit_without_a_finite_loss_fails_its_client_alone():
    """The image of client 1 makes an infinite logit in an exit, and none in the tail."""
    _, tail = halves("plain(after=2)")
    exits = exits_of(tail)
    clean = served(tail, {0: 1.0})
    logits = exits.logits
    exits.logits = lambda trace: [
        torch.where(torch.arange(len(one))[:, None] < 3, one, torch.inf) for one in logits(trace)
    ]
    found = served(tail, {0: 1.0, 1: 1.0})
    assert found.failed == [1] and torch.equal(found.gradient, clean.gradient)


def test_a_phase_of_the_trunk_has_no_exits_and_one_of_exits_none_of_the_tail():
    (_, tail), (_, bare) = halves(BOTH), halves("none()")
    trunk = Split(phases=parse_phases("phase(train='trunk')"))
    found, expected = served(tail, {0: 1.0}, trunk), served(bare, {0: 1.0})
    beside = sum(one.numel() for one in tail.beside.parameters())
    assert torch.equal(found.gradient[beside:], expected.gradient)
    assert not found.gradient[:beside].any() and found.flops == expected.flops
    staged = parse_phases("phase(rounds=1, train='trunk') | phase(train='exits')")
    first, second = (staged.kept(Flat(tail), number) for number in (1, 2))
    assert first.sum() == beside and second.all()


def test_operations_equal_torchs_counter():
    """Of exits behind the cut: what they add to forward and backward of the tail."""
    head, tail = halves(BEHIND)
    tokens, exits = torch.randn(5, 5, 16, requires_grad=True), exits_of(tail)
    counter = FlopCounterMode(display=False)
    with sdpa_kernel(SDPBackend.MATH), counter:
        exits.with_tail(tail, tokens).sum().backward()
    assert tail.flops(5, 5) + exits.flops(5) == counter.get_total_flops()
    assert served(tail, {2: 1.0}).flops == counter.get_total_flops()  # of five images
    bare = whole_flops(*halves("none()"), 5)
    assert whole_flops(head, tail, 5) - bare == exits.flops(5) == 5 * 2 * 3 * 2 * 16 * 4
    trunk = Whole(phases=parse_phases("phase(train='trunk')"))
    assert trunk.flops_of_round(1, head, tail).total == bare // 5


def test_exits_of_a_convolutional_tail_read_the_mean_of_positions():
    head, tail = halves("plain(after='1, 3, 4')", cut=2, model=ResNet18(width=4), channels=3)
    pixels = batch(channels=3).pixels
    head.eval(), tail.eval()
    maps, trace = [], Trace()
    for stage in tail.stages:
        stage.register_forward_hook(lambda *seen: maps.append(seen[-1]))
    tail(head(pixels)[0], trace)
    exits = exits_of(tail)
    assert exits.names == ["exit3", "exit4"]
    means = [one.flatten(2).mean(dim=2) for one in maps[:2]]
    for read, mean, norm in zip(exits.features(trace), means, exits.norms, strict=True):
        torch.testing.assert_close(read, norm(mean))
    assert [tuple(one.shape) for one in predict_by_exit(head, tail, pixels)] == [(5, 4)] * 4


def test_without_exits_behind_the_cut_nothing_changes():
    """Weights of the tail have the names and bits of one without, and exits before it theirs."""
    (head, tail), (before, bare) = halves(BOTH), halves("plain(after=1)")
    assert list(bare.state_dict()) == list(halves("none()")[1].state_dict())
    assert not bare.beside and exits_of(tail).after == (2, 3)
    for mine, other in ((head, before), (tail, bare)):
        shared = other.state_dict()
        assert all(torch.equal(mine.state_dict()[name], one) for name, one in shared.items())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"exits": "plain(after=4)"}, r"blocks 1\.\.3, got 4; behind the last one is the model's"),
        ({"exits": "plain(after=3)", "end": 3}, r"1\.\.2, got 3; the server of a U-shape has no"),
        ({"exits": "recursive(after='1, 3')"}, r"recursive exits are behind blocks 1\.\.2 of the"),
        (
            {"exits": "plain(after=3)", "phases": "phase(train='exits')"},
            "trains exits of the head alone, and there are none: those behind",
        ),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, message):
    model = "vit(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)"
    with pytest.raises(ValueError, match=message) as raised:
        prepare(Experiment.from_dict({"model": model, "cut": 2, **changes}))
    assert "\n" not in str(raised.value)


RUN = {
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "exits": "plain(after='1, 2')",
    "clients": 2,
}


def same(one, other):
    """Bit-equality of all that two runs have trained, and of what their exits get right."""
    weights = [load_file(run.folder / "codec.safetensors") for run in (one, other)]
    assert any(name.startswith("beside_tail.") for name in weights[0])
    are_equal = all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    columns = ["accuracy_exit1", "accuracy_exit2", "train_loss"]
    return one.equals(other) and are_equal and one.rounds[columns].equals(other.rounds[columns])


STAGED = "phase(rounds=1) | phase(train='exits')"


@pytest.mark.parametrize("phases", ["none()", STAGED])
def test_sflv1_equals_fedavg(phases, reference):
    """In a phase of exits nothing crosses, and those behind the cut stay: whole models too."""
    keys = {**RUN, "phases": phases, "tail_optimizer": "adamw(lr=0.01, weight_decay=0.1)"}
    first, second = (reference(strategy=one, **keys) for one in ("sflv1()", "fedavg()"))
    assert same(first, second)
    stays = first.rounds["accuracy_exit2"].nunique() == 1
    assert stays == (phases == STAGED)


def test_bytes_and_operations_of_a_run(reference):
    """Whole models travel with the exits of both halves, heads with their own."""
    for strategy, travelling in (("fedavg()", 2), ("sflv1()", 1)):
        keys = {**RUN, "strategy": strategy, "rounds": 1}
        without, with_exits = reference(**{**keys, "exits": "none()"}), reference(**keys)
        more = with_exits.rounds["head_bytes_up"] - without.rounds["head_bytes_up"]
        weights = travelling * (2 * 16 + 16 * 10 + 10)
        assert more.tolist() == [2 * 4 * weights]
    server = with_exits.rounds["server_flops"] - without.rounds["server_flops"]
    assert server.tolist() == [with_exits.rounds["samples"][0] * 3 * 2 * 16 * 10]


def test_accuracies_are_those_of_the_saved_model(reference):
    outcome = reference(**RUN, strategy="sflv1()", phases="none()", tail_optimizer="sgd(lr=0.1)")
    setup = prepare(Experiment.from_dict({**outcome.summary["experiment"], "out": ""}))
    found = load_halves(outcome.folder, setup.experiment, setup.model_input)
    pixels, labels = setup.test.batch(np.arange(len(setup.test.labels)))
    answers = predict_by_exit(*(one.eval() for one in found[1:]), pixels)
    for column, logits in zip(
        ("accuracy", "accuracy_exit1", "accuracy_exit2"), answers, strict=True
    ):
        right = (logits.argmax(1) == labels).float().mean()
        assert outcome.rounds[column].iloc[-1] == pytest.approx(float(right))


@pytest.mark.parametrize("strategy", ["sflv2()", "local()"])
def test_a_stopped_run_goes_on_as_if_it_never_stopped(strategy, simulate, resume):
    changes = {**RUN, "checkpoint_every": 1, "strategy": strategy}

    def stop(row, result):
        if row["round"] == 1:
            raise KeyboardInterrupt

    whole = simulate(**changes)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **changes)
    half = type(whole)(whole.folder.parent / "run2")
    resume(half)
    if strategy == "sflv2()":
        assert same(whole, half)
    assert whole.rounds["accuracy_exit2"].equals(half.rounds["accuracy_exit2"])


@pytest.mark.slow
def test_engines_agree(on_ray, reference, through_state):
    inline = reference(**RUN)
    assert same(inline, on_ray(**RUN)) and same(inline, through_state(**RUN))


RAGGED = {
    **RUN, "rounds": 1, "local_steps": 1,
    "tokens": "residual_gate(after=1, beta=0.0, rate_mode='threshold')",
}  # fmt: skip


def test_ragged_batches_run_number_by_number(reference):
    """Images with different numbers of tokens: with exits behind the cut as without, detached."""
    alone = reference(**{**RAGGED, "exits": "none()"})
    found = reference(**{**RAGGED, "exits": "plain(after=2, detach=True)"})
    assert found.equals(alone) and found.rounds["accuracy_exit2"].between(0, 1).all()
    more = found.rounds["server_flops"] - alone.rounds["server_flops"]
    assert more.tolist() == [found.rounds["samples"][0] * 3 * 2 * 16 * 10]


def test_ragged_images_cost_the_server_what_they_have_kept(reference):
    """Block 2 on the tokens of each image, and one classifier."""
    run = reference(**{**RAGGED, "exits": "plain(after=2, detach=True)"})
    read, trace = trained.load(run.folder), Trace()
    read.head(read.test.batch(slice(40))[0], trace)
    found = ways_of(read, read.test, np.arange(40), read.experiment.parts.link())
    tokens = trace.counts.numpy()
    assert len({*tokens}) > 1
    block = 2 * tokens * (4 * 16 * 16 + 2 * 16 * 64) + 4 * tokens**2 * 16
    assert found.behind.flops[0, 0].tolist() == (block + 2 * 16 * 10).tolist()
    assert found.behind.flops[1, 0].tolist() == (found.server_flops[0] + 2 * 16 * 10).tolist()
