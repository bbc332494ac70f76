"""SplitCom: what of a batch is sent again, what the tail gets of the rest, and what is kept."""

import pytest
import torch

from fl_split.codecs import Codec, Identity, parse_codec, parse_downlink
from fl_split.codecs.splitcom import SplitCom
from fl_split.exchange.link import Link
from fl_split.exchange.split import Split
from fl_split.flat import Flat
from fl_split.models.vit import ViT
from fl_split.payload import Payload
from fl_split.seeds import StepId, generator
from fl_split.spec_errors import SpecError
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare

AT = StepId(0, 1, 4, 0)
STILL = {
    "head_optimizer": "sgd(lr=0.0)",
    "rounds": 2,
    "local_steps": 0,
    "strategy": "parallel(average_heads=False)",  # an average would round
}
"""Heads that never change: whatever was sent is still what would be sent."""
MOVING = {"codec": "splitcom(threshold=0.2) | uniform(bits=4)", "rounds": 3}


def tail():
    vit = ViT(hidden_size=8, num_hidden_layers=2, num_attention_heads=2, patch_size=4)
    return vit.split(vit.build(image_size=4, channels=1, num_classes=3, seed=0), 1)[1]


def payload(tokens):
    return Payload({"tokens": tokens}, {"labels": torch.arange(len(tokens)) % 3})


def rows(count, seed=0):
    return torch.randn(count, 2, 8, generator=generator(seed, "trial"))


class Road:
    """A client and a server who remember what went between them."""

    def __init__(self, spec):
        self.link, self.memory, self.tail = Link(parse_codec(spec), Identity()), {}, tail()

    def send(self, tokens, samples):
        data = self.link.up(payload(tokens), AT, torch.tensor(samples), self.memory)
        arrival = self.link.renewed().arrive(data, AT, self.tail)
        return data, arrival, arrival.received.tokens.detach()


# One payload after the other.


def test_a_sample_is_sent_again_if_it_has_moved_by_the_threshold():
    """Distances over the norm of what was sent: .05 stays, .1 and .2 are sent; then from there."""
    road, first = Road("splitcom(threshold=0.1)"), rows(4)
    _, _, found = road.send(first, [7, 3, 0, 12])
    assert torch.equal(found, first)
    by = torch.tensor([0.05, 0.1001, 0.2, 0.0])[:, None, None]
    direction = rows(4, 1)
    step = (
        direction * (first.flatten(1).norm(dim=1) / direction.flatten(1).norm(dim=1))[:, None, None]
    )
    second = first + by * step
    order = [2, 0, 3, 1]  # another batch has another order
    data, _, found = road.send(second[order], [[7, 3, 0, 12][i] for i in order])
    wanted = torch.stack([first[0], second[1], second[2], first[3]])[order]
    assert torch.equal(found, wanted)
    assert Payload.from_bytes(data).carried["tokens"].shape == (2, 2, 8)
    third = second.clone()
    third[0] = first[0] + 0.11 * step[0]  # further from what was sent, not from the last visit
    _, _, found = road.send(third, [7, 3, 0, 12])
    assert torch.equal(found, torch.stack([third[0], second[1], second[2], first[3]]))


def test_what_stays_takes_its_label_number_and_flag():
    road, tokens = Road("splitcom(threshold=0.1)"), rows(3)
    first, _, _ = road.send(tokens, [5, 200, 9])
    again, _, found = road.send(tokens * 1.01, [5, 200, 9])
    assert torch.equal(found, tokens)
    sent = Payload.from_bytes(again)
    assert not sent.carried and sent.side["samples"].tolist() == [5, 200, 9]
    names = [len(name) for name in ("labels", "samples", "stays")]
    heads = 1 + sum(3 + length + 4 for length in names)  # kind, name, one dimension
    count = 3 + len("sent") + 1  # of payloads; it has no dimension
    assert len(again) == heads + count + 1 + 3 + 1  # 3 labels of 2 bits, numbers of 8, flags
    assert len(first) == len(again) + (3 + len("tokens") + 3 * 4) + tokens.nbytes


def test_gradients_are_taken_at_what_the_server_has_and_come_down_for_all():
    road, first = Road("splitcom(threshold=0.5)"), rows(2)
    road.send(first, [0, 1])
    now = torch.stack([first[0] * 1.1, -first[1]]).requires_grad_()
    _, arrival, _ = road.send(now, [0, 1])
    flat = Flat(road.tail)
    (cut,) = Split().cut_gradients(flat, [arrival], [1.0], AT)[1]
    used = torch.stack([first[0], now[1].detach()]).requires_grad_()
    logits = flat.module(used)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    torch.testing.assert_close(cut.carried["tokens"], used.grad)
    now.backward(Payload.from_bytes(road.link.down(cut, AT)).carried["tokens"])
    assert torch.equal(now.grad, cut.carried["tokens"])


def test_clients_do_not_mix():
    road, tokens = Road("splitcom()"), rows(2)
    road.send(tokens, [0, 1])
    data = road.link.up(payload(tokens), AT, torch.arange(2), road.memory)
    with pytest.raises(ValueError, match="payload 2 after payload 0: one was lost"):
        road.link.arrive(data, StepId(0, 1, 5, 0), road.tail)
    other = Road("splitcom()")
    other.send(tokens[:1], [1])
    with pytest.raises(ValueError, match="tokens of 0 stay, and never came"):
        other.link.arrive(data, AT, road.tail)


def test_a_payload_that_is_lost_is_missed():
    """Else the server would take what came before for a sample that has not moved since."""
    road, tokens = Road("splitcom(threshold=0.1)"), rows(1)
    road.send(tokens, [0])
    road.link.up(payload(5 * tokens), AT, torch.arange(1), road.memory)  # and nobody reads it
    with pytest.raises(ValueError, match="payload 3 after payload 1"):
        road.send(5.01 * tokens, [0])


def test_other_shapes_are_sent_anew():
    """As where a selector draws how many tokens there are."""
    road = Road("splitcom(threshold=9.0)")
    for count in (2, 1, 2):
        tokens = rows(3)[:, :count]
        data = road.link.up(payload(tokens), AT, torch.arange(3), road.memory)
        assert torch.equal(Payload.from_bytes(data).carried["tokens"], tokens)


def test_behind_a_projection_less_is_remembered():
    road = Road("lightsplit(ratio=0.25) | splitcom()")
    assert road.memory == {}
    encoded = Payload({"tokens": rows(2)[..., :2]}, {"labels": torch.zeros(2).long()})
    road.link.up(encoded, AT, torch.arange(2), road.memory)
    kept = [value for name, value in road.memory.items() if name != "sent"]
    assert sum(value.numel() for value in kept) == 2 * 2 * 2


@pytest.mark.parametrize(
    "spec", ["uniform() | splitcom()", "adc() | splitcom()", "topk() | splitcom()"]
)
def test_what_does_not_keep_samples_as_they_are_cannot_come_before(spec):
    with pytest.raises(SpecError, match="it comes first, or right behind"):
        parse_codec(spec)


def test_it_serves_no_cut_gradients():
    with pytest.raises(SpecError, match="SplitCom remembers smashed data"):
        parse_downlink("splitcom() | uniform()")


@pytest.mark.parametrize("changes", [
    {"channel": "erasure(mode='drop')"}, {"channel": "bit_errors()"},
    {"tokens": "residual_gate(rate_mode='threshold')"},
])  # fmt: skip
def test_what_could_leave_the_sides_apart_is_refused(changes):
    keys = {
        "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2)",
        "clients": 2,
    }
    with pytest.raises(ValueError, match="SplitCom"):
        prepare(Experiment.from_dict({**keys, "cut": 2, "codec": "splitcom()", **changes}))


# Runs.


def test_threshold_0_is_identity_to_the_bit(simulate, reference):
    found, whole = simulate(codec="splitcom(threshold=0.0)"), reference()
    assert found.equals(whole)
    more = found.rounds["payload_bytes_up"] - whole.rounds["payload_bytes_up"]
    steps = whole.rounds["client_steps"]
    heads = sum(3 + len(name) + 4 for name in ("samples", "stays"))
    assert (more > steps * heads).all()  # numbers of samples and flags are counted
    assert found.rounds["payload_bytes_down"].equals(whole.rounds["payload_bytes_down"])


@pytest.mark.parametrize("end", [0, 2])
def test_with_heads_that_stand_still_every_sample_is_sent_once(simulate, reference, end):
    """And what is trained is trained as with identity, to the bit."""
    found = simulate(codec="splitcom()", end=end, **STILL)
    whole = reference(end=end, **STILL)
    assert found.equals(whole)
    first, second = found.rounds["payload_bytes_up"]
    outputs = 0 if end == 0 else whole.rounds["smashed_bytes"][0] / 2  # gradients go up, too
    smashed = whole.rounds["smashed_bytes"][0] - outputs
    steps = whole.rounds["client_steps"][0]
    header = 3 + len("tokens") + 3 * 4
    # Labels and numbers of samples take the bits of the largest of a batch, in round 2 of others.
    assert first - second == pytest.approx(smashed + steps * header, abs=int(steps) * 4)


def test_messages_through_states_and_ray_change_nothing(reference, through_state, on_ray):
    whole = reference(**MOVING)
    up = whole.rounds["payload_bytes_up"]
    assert up[1] < 0.9 * up[0]  # some stay
    for found in (through_state(**MOVING), on_ray(**MOVING)):
        assert found.equals(whole)
        assert found.rounds["payload_bytes_up"].equals(up)


@pytest.mark.parametrize("end", [0, 2])
def test_a_stopped_run_goes_on_with_what_both_sides_remember(
    reference, simulate, resume, tmp_path, end
):
    def stop(row, result):
        if row["round"] == 2:
            raise KeyboardInterrupt

    whole = reference(end=end, **MOVING)
    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, end=end, checkpoint_every=1, **MOVING)
    half = type(whole)(tmp_path / "run1")
    resume(half)
    assert half.equals(whole)
    assert half.rounds["payload_bytes_up"].equals(whole.rounds["payload_bytes_up"])


def test_what_both_sides_remember_is_counted(simulate):
    found = simulate(codec="lightsplit(ratio=0.25) | splitcom()", rounds=1).summary
    setup = prepare(Experiment.from_dict(found["experiment"]))
    sizes = [len(part) for part in setup.train.partitions]
    each = setup.head.smashed_shape[0] * 4 * 4  # tokens, a quarter of 16 numbers, fp32
    wanted = {"client": max(sizes) * each, "server": sum(sizes) * each}
    assert found["codec_memory_bytes"] == wanted
    plain = simulate(codec="lightsplit(ratio=0.25)", rounds=1).summary
    assert plain["codec_memory_bytes"] == {"client": 0, "server": 0}
    assert found["client_bytes"] - plain["client_bytes"] == wanted["client"]


def test_only_it_remembers():
    assert SplitCom().remembers and not Codec().remembers
    assert parse_codec("lightsplit() | splitcom() | fp16()").remembers
    assert not parse_codec("lightsplit() | fp16()").remembers
