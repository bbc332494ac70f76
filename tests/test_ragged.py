"""Images of one batch that keep different numbers of tokens: each as if it came alone."""

import copy

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from fl_split.channels import CHANNELS
from fl_split.codecs import CODECS, Smashed, parse_codec
from fl_split.exchange.link import Link
from fl_split.exchange.local_loss import flops_of_batch
from fl_split.exchange.protocol import Batch
from fl_split.exchange.serving import through
from fl_split.exchange.split import Split
from fl_split.exchange.whole import joined, predict
from fl_split.flat import Flat
from fl_split.models.beside import Trace
from fl_split.models.cut import insert as insert_codec
from fl_split.models.vit import ViT, split
from fl_split.payload import Payload
from fl_split.ragged import run
from fl_split.seeds import StepId, generator, seeded
from fl_split.specs import parse
from fl_split.tokens import TOKENS, insert
from simulations.inference.kept_patches import kept_patches
from simulations.inference.policies import AllSent
from simulations.inference.served import serve
from simulations.inference.trained import load
from simulations.inference.ways import ways_of
from simulations.report.kept_patches import composed
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare

SPEC = ViT(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)
IMAGES = 6
THRESHOLDS = [
    "residual_gate(rate=0.5, beta=0.0, rate_mode='threshold', trained_at='rate', after=1)",
    "dual_gate(rate=0.5, rate_mode='threshold', trained_at='rate', after=2)",
]
EACH = "dual_gate(after=1, trained_at='image')"
AT = StepId(0, 1, 2, 0)

SMALL = {"clients": 3, "rounds": 2, "local_steps": 2, "batch_size": 8, "cut": 2}
MODEL = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=2)"
THRESHOLD = "residual_gate(after=1, beta=0.0, rate_mode='threshold')"
"""Scores around 1/2, as the threshold is: about half of the patches are above it."""


def halves(tokens, codec="identity", cut=3):
    module = SPEC.build(image_size=16, channels=3, num_classes=5, seed=0)
    module.set_attn_implementation("eager")  # fused attention counts as nothing on a CPU
    head, tail = split(module.train(), cut)
    insert(head, parse(tokens, TOKENS), 0)
    if hasattr(head.selector, "gates"):  # as if trained: scores on both sides of thresholds
        for gate in head.selector.all_gates:
            torch.nn.init.normal_(gate.score.weight, generator=generator(5, "trial"))
            for layer in (gate.score, gate.threshold):
                if layer.bias is not None:
                    torch.nn.init.zeros_(layer.bias)
    insert_codec(head, tail, parse_codec(codec), 0)
    return head, tail


def images(count=IMAGES):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def batch():
    return Batch(images(), torch.arange(IMAGES) % 5, 5)


def alone(head, pixels):
    """Return the tokens (1, T, D) of each image, which comes alone and so has no padding."""
    return [head(one[None], Trace())[0] for one in pixels]


@pytest.mark.parametrize("tokens", THRESHOLDS)
def test_an_image_gives_what_it_gives_alone(tokens):
    head, tail = halves(tokens)
    trace = Trace()
    found, attention = head(images(), trace)
    each = alone(head, images())
    assert trace.counts.tolist() == [one.shape[1] for one in each]
    assert len(set(trace.counts.tolist())) > 2  # else nothing is tested
    for number, one in enumerate(each):
        count = one.shape[1]
        torch.testing.assert_close(found[number : number + 1, :count], one)
        assert not found[number, count:].any() and not attention()[number, count:].any()
    torch.testing.assert_close(attention().sum(1), torch.ones(IMAGES))
    logits = torch.cat([tail(one) for one in each])
    torch.testing.assert_close(joined(head, tail, images()), logits)
    torch.testing.assert_close(predict(head.eval(), tail, images()), logits)


@pytest.mark.parametrize("tokens", THRESHOLDS)
def test_those_above_the_threshold_go_on_and_at_least_one(tokens):
    head, _ = halves(tokens)
    trace = Trace()
    head(images(), trace)
    assert trace.kept.tolist() == (trace.masks[0] > 1e-3).sum(1).clamp(min=1).tolist()
    torch.nn.init.constant_(head.selector.all_gates[0].score.weight, 0)  # and none is above
    with torch.no_grad():
        head.selector.all_gates[0].threshold.weight.copy_(head.selector.budget(0.5) * 1e4)
        if "dual" not in tokens:
            head.selector.rating = lambda score, limit, mask: (score, torch.zeros_like(score))
    trace = Trace()
    assert head(images(), trace)[0].shape == (IMAGES, 2, 16)
    assert trace.kept.tolist() == [1] * IMAGES


def test_each_image_has_a_rate_of_its_own_in_training_alone():
    head, _ = halves(EACH)
    with seeded(0, "trial"):
        rates = 1 - torch.rand(IMAGES)
    trace = Trace()
    with seeded(0, "trial"):
        head(images(), trace)
    assert trace.kept.tolist() == [-int(-16 * rate // 1) for rate in rates.double()]
    assert torch.equal(trace.rate, rates)
    assert head.eval()(images())[0].shape == (IMAGES, 1 + 8, 16) and not head.is_ragged
    one = halves(EACH.replace("'image'", "'rate'"))[0].with_rate(float(rates[0]))
    torch.testing.assert_close(one(images()[:1])[0], _first(halves(EACH)[0], rates))


def _first(head, rates):
    head.selector.present_rate = lambda tokens: rates
    trace = Trace()
    found = head(images(), trace)[0]
    return found[:1, : trace.counts[0]]


@pytest.mark.parametrize("tokens", [*THRESHOLDS, EACH])
def test_gradients_of_both_halves_are_those_of_one_model(tokens):
    head, tail = halves(tokens)
    whole = copy.deepcopy(head), copy.deepcopy(tail)
    step = Split().step(Flat(head), Flat(tail), Link(*[parse_codec("identity")] * 2), batch(), AT)
    with seeded(AT.seed, "head", *AT.path()):
        logits = joined(*whole, images())
    torch.nn.functional.cross_entropy(logits, batch().labels).backward()
    for gradient, half in zip((step.of_head, step.of_tail), whole, strict=True):
        wanted = [torch.zeros_like(p) if p.grad is None else p.grad for p in half.parameters()]
        torch.testing.assert_close(gradient, torch.cat([one.flatten() for one in wanted]))


@pytest.mark.parametrize("tokens", [*THRESHOLDS, EACH])
def test_operations_are_those_that_torch_counts(tokens):
    head, tail = halves(tokens, "bottlenet(ratio=0.5)")
    kept = torch.tensor([1, 3, 3, 16, 7, 2])
    head.selector.counts = lambda rating, rate: kept
    trace = Trace()
    with FlopCounterMode(display=False) as counter:
        tokens = head(images(), trace)[0]
        found = flops_of_batch("all", head, trace.kept, IMAGES)
        assert found.forward == counter.get_total_flops()
        run(tail, tokens, trace.counts).sum().backward()
    whole = found.total + sum(tail.flops(1, 1 + count) for count in kept.tolist())
    assert whole == counter.get_total_flops()


def smashed(counts, width=2, labels=None):
    size = max(counts)
    tokens = torch.randn(len(counts), size, width, generator=generator(1, "trial"))
    attention = torch.rand(len(counts), size, generator=generator(2, "trial"))
    for row, count in enumerate(counts):
        tokens[row, count:], attention[row, count:] = 0, 0
    attention = attention / attention.sum(1, keepdim=True)
    labels = torch.arange(len(counts)) if labels is None else labels
    return Smashed(tokens, lambda: attention, labels, 9, counts=torch.tensor(counts))


def crossed(spec, data):
    codec = parse_codec(spec)
    payload = codec.pack(codec.encode(data, generator(0, "codec")), generator(0, "pack"))
    return codec.decode(codec.unpack(payload)), payload


@pytest.mark.parametrize("spec", ["identity()", "fp16()", "uniform(bits=16)", "zstd()"])
def test_padding_does_not_cross(spec):
    counts = [3, 1, 7, 3]
    data = smashed(counts)
    received, payload = crossed(spec, data)
    assert received.counts.tolist() == counts and received.targets.tolist() == [0, 1, 2, 3]
    torch.testing.assert_close(received.tokens, data.tokens, atol=2e-3, rtol=1e-3)
    if spec == "identity()":
        assert payload.values == sum(counts) * 2
        labels, numbers = (2 * 4 + 7) // 8, (3 * 4 + 7) // 8  # bits of 3 and of 7, four times
        headers = [3 + len(name) + 4 * dims for name, dims in
                   (("tokens", 3), ("labels", 1), ("counts-of-tokens", 1))]  # fmt: skip
        assert payload.nbytes == 1 + sum(headers) + 4 * 2 * sum(counts) + labels + numbers


def test_attended_chooses_for_each_image_as_if_it_came_alone():
    data = smashed([3, 10, 7, 3])
    received, _ = crossed("attended(ratio=0.5)", data)
    for row, count in enumerate(data.counts.tolist()):
        part = data.tokens[row : row + 1, :count]
        attention = data.attention()[row : row + 1, :count]
        one = Smashed(part, lambda attention=attention: attention, data.labels[row : row + 1], 9)
        (wanted, _) = crossed("attended(ratio=0.5)", one)
        length = received.counts[row]
        assert wanted.tokens.shape[1] == length == max(2, count // 2)
        torch.testing.assert_close(received.tokens[row : row + 1, :length], wanted.tokens)


def test_adc_averages_a_token_over_those_members_that_have_it():
    """One cluster of two images with 2 and 4 tokens, CLS first; 4 of 4 tokens are kept.

    By mean attention after CLS: token 1 (.5 and .1), 3 (.4), 2 (.1): 1 is of both images.
    """
    tokens = torch.tensor([[[1.0], [3], [0], [0]], [[5], [7], [20], [30]]])
    attention = torch.tensor([[0.5, 0.5, 0, 0], [0.4, 0.1, 0.1, 0.4]])
    labels = torch.tensor([0, 1])
    counts = torch.tensor([2, 4])
    data = Smashed(tokens, lambda: attention, labels, 2, counts=counts)
    codec = parse_codec("adc(batch_ratio=0.1, token_ratio=1.0)")
    codec = copy.copy(codec)
    object.__setattr__(codec, "sizes", lambda samples, count: (1, count))
    received = codec.decode(codec.encode(data, generator(0, "codec")))
    assert received.tokens.flatten().tolist() == [3, 5, 30, 20] and received.counts.tolist() == [4]
    assert received.targets.tolist() == [[0.5, 0.5]]


def test_clusters_of_adc_end_where_no_member_has_a_token():
    data = smashed([2, 9, 2, 2], labels=torch.arange(4))
    received, payload = crossed("adc(batch_ratio=1.0, token_ratio=1.0)", data)
    assert sorted(received.counts.tolist())[-1] == 9 and len(received.counts) <= 4
    assert payload.values == int(received.counts.sum()) * 2
    assert not received.tokens[~(torch.arange(9) < received.counts[:, None])].any()


def test_rows_of_several_clients_run_together():
    _, tail = halves("none()")
    two = [crossed("identity()", smashed(counts, 16))[0] for counts in ([3, 1], [1, 8, 3])]
    wanted = [
        tail(one.tokens[row : row + 1, :count])
        for one in two
        for row, count in enumerate(one.counts.tolist())
    ]
    torch.testing.assert_close(through(tail, two), torch.cat(wanted))


@pytest.mark.parametrize("side", [[0, 4], [3, 3], [2**30, 1]])
def test_counts_that_make_no_sense_are_refused(side):
    codec = parse_codec("identity()")
    payload = codec.encode(smashed([1, 3]), generator(0, "codec"))
    payload.side["counts-of-tokens"] = torch.tensor(side)
    with pytest.raises(ValueError, match="tokens for samples of"):
        codec.decode(payload)


# Whole runs.


@pytest.mark.parametrize("strategy", ["parallel", "fedavg"])
@pytest.mark.parametrize("tokens", [THRESHOLD, "dual_gate(after=1, trained_at='image')"])
def test_ray_equals_inline(reference, on_ray, strategy, tokens):
    changes = {**SMALL, "model": MODEL, "tokens": tokens, "strategy": strategy}
    assert on_ray(**changes).equals(reference(**changes))


def test_a_client_through_its_state_repeats_its_forward_with_the_same_bits(
    reference, through_state
):
    changes = {**SMALL, "model": MODEL, "tokens": THRESHOLD, "strategy": "parallel"}
    assert through_state(**changes).equals(reference(**changes))


def test_what_is_counted_is_what_was_sent(reference):
    """Of each token that crosses 16 numbers go up and 16 down; all else is of known size."""
    found = reference(**SMALL, model=MODEL, tokens=THRESHOLD, strategy="parallel").rounds
    down = found.payload_bytes_down - found.samples // 8 * (1 + 3 + len("tokens") + 12)
    assert (down % 64 == 0).all()
    kept = down // 64 - found.samples  # without CLS
    assert ((kept >= found.samples) & (kept < 16 * found.samples)).all()
    head = prepared(tokens=THRESHOLD).head
    one, two = (sum(flops_of_batch("all", head, count, 1)) for count in (1, 2))
    slope = two - one  # one block behind the choice: attention makes it a little more than that
    assert (found.client_flops >= found.samples * one + (kept - found.samples) * slope).all()
    whole = sum(flops_of_batch("all", head, 16, 1))
    assert (found.client_flops < found.samples * whole).all()


def test_inference_counts_what_each_image_takes_and_shows_which_patches_went_on(simulate):
    run = simulate(**SMALL, model=MODEL, tokens=THRESHOLD, exits="plain()")
    trained = load(run.folder)
    rows, trace = np.arange(30), Trace()
    ways = ways_of(trained, trained.test, rows, trained.experiment.parts.link())
    trained.head(trained.test.batch(rows)[0], trace)
    assert len({*trace.kept.tolist()}) > 2
    alike = [trained.head.keeping(count) for count in trace.kept.tolist()]
    served = serve(ways, AllSent())
    assert served.device_flops.tolist() == [one.forward_flops(1) for one in alike]
    tail = [trained.tail.forward_flops(1, 1 + count) for count in trace.kept.tolist()]
    assert served.server_flops.tolist() == tail
    less = ways.sent_bytes[-1] - ways.sent_bytes[-1].min()
    assert less.tolist() == (64 * (trace.kept - trace.kept.min())).tolist()
    shown = kept_patches(trained)
    one = shown[(shown["rate"] == 0.5) & (shown["image"] == shown["image"].iloc[0])]
    first = Trace()
    trained.head(trained.test.batch(one["image"].unique())[0], first)
    wanted = first.went_on.view(4, 4).repeat_interleave(2, 0).repeat_interleave(2, 1)
    assert one["kept"].tolist() == wanted.flatten().tolist()
    strips = composed(shown)  # ten images of 8 by 8 pixels, whole and at three rates, gaps between
    assert strips.shape == (4 * 9, 10 * 9) and (strips == -1).any()
    assert np.isnan(strips[8]).all() and not (strips[:8] == -1).any()


@pytest.mark.parametrize("codec", ["adc(ratio=0.5)", "attended(ratio=0.5) | uniform(bits=4)"])
def test_codecs_that_choose_tokens_choose_among_those_that_are_left(simulate, codec):
    found = simulate(
        **SMALL, model=MODEL, tokens=THRESHOLD, codec=codec, exits="plain()",
        downlink="topk(ratio=0.5)",
    )  # fmt: skip
    assert found.summary["status"] == "complete" and found.rounds.loss.notna().all()


def prepared(**changes):
    return prepare(Experiment.from_dict({"model": MODEL, "engine": "inline()", **SMALL, **changes}))


@pytest.mark.parametrize("name", CODECS)
def test_codecs_carry_counts_or_are_refused_in_one_line(name):
    codec = CODECS[name]()
    if codec.carries_counts:
        prepared(codec=f"{name}()", tokens=THRESHOLD)
        return
    with pytest.raises(ValueError, match=r"codec: .*different numbers of tokens") as refusal:
        prepared(codec=f"{name}()", tokens=THRESHOLD)
    assert "identity" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_ushape_is_refused_in_one_line():
    for tokens in (THRESHOLD, EACH):
        with pytest.raises(ValueError, match="tokens: the end of a U-shape"):
            prepared(tokens=tokens, cut=1, end=2)


def test_noise_follows_each_image_and_not_the_batch():
    """Images of power 1 and 10,000, two tokens and three: the noise of each is at 20 dB of it."""
    width = 2000
    tokens = torch.randn(2, 3, width, generator=generator(3, "trial"))
    tokens[1] *= 100
    tokens[0, 2] = 0
    data = Smashed(
        tokens, lambda: tokens[..., 0], torch.tensor([0, 1]), 9, counts=torch.tensor([2, 3])
    )
    codec = parse_codec("identity()")
    sent = codec.encode(data, generator(0, "codec"))
    crossing = parse("awgn(snr_db=20.0)", CHANNELS).cross(
        sent.to_bytes(), codec, generator(0, "channel")
    )
    came = codec.decode(Payload.from_bytes(crossing.data)).tokens
    for image, count in ((0, 2), (1, 3)):
        clean = tokens[image, :count]
        noise = came[image, :count] - clean
        found = 10 * torch.log10(clean.square().sum() / noise.square().sum())
        assert float(found) == pytest.approx(20, abs=0.5)
    assert len(crossing.state["snr_db"]) == 2 and crossing.uses == (2 + 3) * width // 2


def test_error_feedback_is_refused_in_one_line():
    with pytest.raises(ValueError, match="downlink: error_feedback pays row by row"):
        prepared(tokens=THRESHOLD, downlink="topk(ratio=0.1, error_feedback=True)")
