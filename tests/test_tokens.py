"""Which tokens go on: counts, gates and gradients worked out by hand, operations by torch."""

import copy
from fractions import Fraction
from math import log

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import Dinov2Config, Dinov2ForImageClassification

from fl_split.codecs import CODECS, Smashed, parse_codec
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.flat import Flat
from fl_split.models.beside import Trace
from fl_split.models.costs import whole_flops
from fl_split.models.cut import insert as insert_codec
from fl_split.models.dinov2 import split as split_dinov2
from fl_split.models.selector import Sizes, num_kept
from fl_split.models.vit import ViT, split
from fl_split.seeds import StepId, generator, global_state
from fl_split.specs import parse
from fl_split.testing import check_tokens
from fl_split.tokens import TOKENS, insert

SPEC = ViT(hidden_size=16, num_hidden_layers=4, num_attention_heads=2, patch_size=4)
PATCHES = 16
ENTRIES = [name for name in TOKENS if name != "none"]
GATED = ["dual_gate", "residual_gate"]
RATES = [0.05, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]


def halves(tokens="none()", cut=3, end=0, model=SPEC):
    module = model.build(image_size=16, channels=3, num_classes=5, seed=0)
    module.set_attn_implementation("eager")  # fused attention counts as nothing on a CPU
    head, tail = split(module.train(), cut, end)
    insert(head, parse(tokens, TOKENS), 0)
    return head, tail


def images(count=6):
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def at(step=0):
    return StepId(0, 1, 2, step)


def batch():
    return Batch(images(), torch.arange(6) % 5, 5)


@pytest.mark.parametrize("tenths", range(1, 11))
def test_counts_are_rounded_up_as_fractions_are(tenths):
    """0.1 * 30 is above 3 in floating point, and 0.7 * 10 above 7."""
    for patches in range(1, 300):
        assert num_kept(tenths / 10, patches) == -(-tenths * patches // 10)


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("name", ENTRIES)
def test_every_entry_keeps_the_laws(name, after):
    check_tokens(parse(f"{name}(after={after})", TOKENS))


@pytest.mark.parametrize("name", GATED)
def test_gates_by_threshold_keep_the_laws(name):
    for more in ("rate_mode='threshold'", "trained_at='image'", "trained_at='rate', after=2"):
        check_tokens(parse(f"{name}({more})", TOKENS))


@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("name", ENTRIES)
def test_exactly_so_many_patches_go_on(name, after):
    head, _ = halves(f"{name}(after={after})")
    head.eval()
    for rate in RATES:
        tokens, attention = head.with_rate(rate)(images())
        share = Fraction(str(rate)) * PATCHES
        assert tokens.shape == (6, 1 - (-share // 1), 16)
        assert attention().shape == tokens.shape[:2]
        torch.testing.assert_close(attention().sum(1), torch.ones(6))


@pytest.mark.parametrize("name", ["norm", "cls_attention", "random"])
def test_all_patches_are_those_of_a_head_without_selection_bit_for_bit(name):
    plain, one = halves()[0], halves(f"{name}(rate=1.0)")[0]
    assert torch.equal(plain(images())[0], one(images())[0])
    for head in (plain, one):
        head(images())[0].square().sum().backward()
    for (key, weight), other in zip(plain.named_parameters(), one.parameters(), strict=True):
        assert torch.equal(weight.grad, other.grad), key


def test_nothing_chosen_is_nothing_added():
    head, _ = halves()
    assert head.selector is None and not head.has_dropout and head.can_stack
    assert [name for name, _ in head.named_children()] == [
        "beside", "embeddings", "blocks", "encoder",
    ]  # fmt: skip
    assert not halves("norm()")[0].can_stack
    ushape, _ = halves("dual_gate()", cut=2, end=3)
    last = [*ushape.end.parameters()]
    assert all(a is b for a, b in zip([*ushape.parameters()][-len(last) :], last, strict=True))


def selected(spec, tokens, blocks=1, read=1):
    """Run blocks that do nothing, so that each number can be worked out."""
    sizes = Sizes(tokens.shape[2], blocks, read)
    with torch.random.fork_rng():
        selector = parse(spec, TOKENS).selector(sizes)
    return selector, [nn.Identity() for _ in range(blocks)]


def test_norms_by_hand():
    """Norms of the patches: 5, 1, 13, 2; the read token has the largest and does not count."""
    tokens = torch.tensor([[[99, 0], [3, 4], [1, 0], [5, 12], [0, 2]]]).float().requires_grad_()
    selector, blocks = selected("norm(rate=0.5)", tokens)
    before, left, _ = selector(blocks, tokens)
    assert left.tolist() == [[[99, 0], [3, 4], [5, 12]]] and torch.equal(before, left)
    left.sum().backward()
    assert tokens.grad[0].tolist() == [[1, 1], [1, 1], [0, 0], [1, 1], [0, 0]]


def test_equal_patches_go_on_in_order():
    selector, blocks = selected("norm(rate=0.5)", torch.ones(1, 5, 1))
    tokens = torch.tensor([0.0, 1, -1, 1, -1])[None, :, None]
    assert selector(blocks, tokens)[1].flatten().tolist() == [0, 1, -1]


@torch.no_grad()
def test_a_residual_gate_by_hand():
    """Scores sigmoid(x / 2): of 2 ln 9, 2 ln 3, 0 and -2 ln 3 it is 0.9, 0.75, 0.5, 0.25.

    The budget token is 0.5 * 2 = 1, the threshold sigmoid(-ln 1.5) = 0.4. Of two patches the masks
    are 0.5 and 0.35; the third would have 0.1, the last has 0.
    """
    values = torch.tensor([7, -2 * log(3), 2 * log(9), 0, 2 * log(3)])
    tokens = values[None, :, None]
    selector, blocks = selected("residual_gate(rate=0.5, tau=2.0, beta=0.0)", tokens)
    selector.eval()
    selector.token.fill_(2.0)
    selector.all_gates[0].score.weight.fill_(1.0)
    selector.all_gates[0].threshold.weight.fill_(-log(1.5))
    trace = Trace()
    before, left, _ = selector(blocks, tokens, trace)
    wanted = [7, 0.5 * 2 * log(9), 0.35 * 2 * log(3)]
    torch.testing.assert_close(left.flatten(), torch.tensor(wanted))
    torch.testing.assert_close(before.flatten(), values[[0, 2, 4]])
    torch.testing.assert_close(trace.masks[0], torch.tensor([[0, 0.5, 0.1, 0.35]]))
    assert trace.rate == 0.5 and len(trace.hidden) == 1 and torch.equal(trace.hidden[0], left)


@torch.no_grad()
def test_two_dual_gates_by_hand():
    """The budget token is 0.25 * 2 + 0.75 * 6 = 5; both thresholds are sigmoid(-ln 4) = 0.2.

    First scores 0.9, 0.8, 0.6, 0.3: the best goes on with 0.7. What reaches the second gate is
    0.7 ln 9; its score by hand below, its mask 0.7 times that less 0.2.
    """
    tokens = torch.tensor([3, log(1.5), log(9), log(3 / 7), log(4)])[None, :, None]
    selector, blocks = selected("dual_gate(rate=0.25, after=1)", tokens, blocks=2)
    selector.eval()
    selector.low.fill_(2.0)
    selector.up.fill_(6.0)
    for gate in selector.all_gates:
        assert (gate.score.bias, gate.threshold.bias) == (5.0, -5.0)
        gate.score.weight.fill_(1.0)
        gate.score.bias.fill_(0.0)
        gate.threshold.weight.fill_(-log(4) / 5)
        gate.threshold.bias.fill_(0.0)
    trace = Trace()
    _, left, _ = selector(blocks, tokens, trace)
    first = 0.7 * log(9)
    second = 0.7 * (1 / (1 + 9**-0.7) - 0.2)
    torch.testing.assert_close(left.flatten(), torch.tensor([3, first * second]))
    torch.testing.assert_close(trace.masks[0], torch.tensor([[0.4, 0.7, 0.1, 0.6]]))
    torch.testing.assert_close(trace.masks[1], torch.tensor([[0, second, 0, 0]]))


def test_penalties_by_hand():
    """Mean masks of two images, at rate 0.5: 0.75 and 0.25; then 0.4 and 0.4."""
    means = [torch.tensor([0.75, 0.25]), torch.tensor([0.4, 0.4])]
    excess = parse("residual_gate(penalty=2.0)", TOKENS).beside()
    assert float(excess.of_means(means, 0.5)) == pytest.approx(2 * 1.5 * 0.0625 / 2)
    distance = parse("dual_gate(penalty=3.0, inner=2.0)", TOKENS).beside()
    assert float(distance.of_means(means, 0.5)) == pytest.approx(3 * 0.08 + 2 * 0.23)
    assert float(distance.of_means(means[1:], 0.5)) == pytest.approx(3 * 0.08)
    assert all(parse(f"{name}()", TOKENS).beside() is None for name in TOKENS)


@pytest.mark.parametrize("name", GATED)
def test_a_penalty_reaches_gates_through_the_local_loss(name):
    head, _ = halves(f"{name}(rate=0.1, trained_at='rate', penalty=1.0)")
    payload = Split().smash(head, parse_codec("identity"), batch(), at(), {})
    assert payload.local is not None
    payload.local.backward()
    assert all(weight.grad.abs().sum() > 0 for weight in head.selector.parameters())


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("name", GATED)
def test_training_and_testing_are_the_same_at_one_rate(name, after):
    head, _ = halves(f"{name}(rate=0.4, after={after}, trained_at='rate')")
    trained = head.train()(images())[0]
    assert torch.equal(trained, head.eval()(images())[0])
    drawing, _ = halves(f"{name}(rate=1.0, after={after})")
    assert torch.equal(trained, drawing.with_rate(0.4)(images())[0])
    assert torch.equal(trained, drawing.eval().with_rate(0.4)(images())[0])
    assert drawing(images())[0].shape[1] == 1 + PATCHES


@pytest.mark.parametrize("after", [0, 1])
@pytest.mark.parametrize("name", ENTRIES)
def test_gradients_reach_everything_in_the_head_and_nothing_else_is_touched(name, after):
    head, tail = halves(f"{name}(rate=0.5, after={after})")
    before = {key: value.clone() for key, value in [*head.state_dict().items()]}
    logits = tail(head.with_rate(0.5)(images())[0])
    logits.square().sum().backward()
    for key, weight in head.named_parameters():
        is_idle = ".k_proj.bias" in key  # softmax does not see it
        assert is_idle or weight.grad.abs().sum() > 0, key
    assert all(torch.equal(before[key], value) for key, value in head.state_dict().items())


@pytest.mark.parametrize("name", GATED)
def test_the_budget_token_moves_patches_and_does_not_leave(name):
    head, _ = halves(f"{name}(rate=1.0)")
    head.eval()
    first, _ = head(images())
    with torch.no_grad():
        for key in ("token", "low", "up"):
            if hasattr(head.selector, key):
                getattr(head.selector, key).add_(torch.linspace(-3, 3, 16))
    second, _ = head(images())
    assert first.shape == second.shape == (6, 1 + PATCHES, 16)
    assert not torch.allclose(first[:, :1], second[:, :1])


def test_attention_is_that_of_the_tokens_that_are_left():
    """Softmax over fewer tokens is that over all, renormalised."""
    plain, head = halves()[0], halves("cls_attention(rate=0.3)")[0]
    whole = plain(images())[1]()
    kept = torch.cat([torch.zeros(6, 1).long(), whole[:, 1:].topk(5).indices + 1], 1).sort().values
    wanted = whole.gather(1, kept)
    tokens, attention = head(images())
    torch.testing.assert_close(attention(), wanted / wanted.sum(1, keepdim=True))
    everything = plain(images())[0].gather(1, kept[..., None].expand(-1, -1, 16))
    torch.testing.assert_close(tokens, everything)


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("after", [0, 2])
def test_codecs_choose_among_the_tokens_that_are_left(name, after):
    head, _ = halves(f"{name}(rate=0.5, after={after})")
    tokens, attention = head.eval()(images())
    smashed = Smashed(tokens, attention, torch.arange(6) % 5, 5)
    sent = parse_codec("attended(ratio=0.5, rest=False)").encode(smashed, generator(0, "trial"))
    best = attention()[:, 1:].topk(3).indices + 1
    wanted = torch.cat([tokens[:, :1], tokens.gather(1, best[..., None].expand(-1, -1, 16))], 1)
    assert torch.equal(sent.carried["tokens"], wanted)
    adc = parse_codec("adc(batch_ratio=1.0, token_ratio=0.5)")
    assert adc.encode(smashed, generator(0, "trial")).carried["tokens"].shape == (6, 4, 16)


def test_what_is_drawn_comes_from_the_step_in_training_and_is_fixed_in_testing():
    head, _ = halves("random(rate=0.25)")
    exchange, codec, before = Split(), parse_codec("identity"), global_state()

    def sent(step):
        return exchange.smash(head, codec, batch(), at(step), {}).carried["tokens"]

    assert torch.equal(sent(0), sent(0)) and not torch.equal(sent(0), sent(1))
    head.eval()
    traces = Trace(), Trace()
    tests = [head(images(), trace)[0] for trace in traces]
    assert torch.equal(*tests) and global_state() == before
    masks = traces[0].masks[0]
    assert masks.sum(1).tolist() == [4] * 6 and len({tuple(row) for row in masks.tolist()}) > 1


@pytest.mark.parametrize("name", GATED)
def test_each_step_has_a_rate_of_its_own_and_the_same_when_repeated(name):
    head, _ = halves(f"{name}()")
    exchange, codec, before = Split(), parse_codec("identity"), global_state()
    sent = [
        exchange.smash(head, codec, batch(), at(step), {}).carried["tokens"]
        for step in [*range(40), 0]
    ]
    assert torch.equal(sent[0], sent[-1]) and global_state() == before
    counts = [one.shape[1] - 1 for one in sent[:-1]]
    assert min(counts) >= 1 and max(counts) <= PATCHES and len(set(counts)) > 8
    assert abs(sum(counts) / 40 - 8.5) < 4 * 4.61 / 40**0.5  # uniform on 1..16


@pytest.mark.parametrize("codec", ["identity", "bottlenet(ratio=0.25)"])
@pytest.mark.parametrize("after", [0, 1, 2])
@pytest.mark.parametrize("name", ENTRIES)
def test_operations_are_those_that_torch_counts(name, after, codec):
    head, tail = halves(f"{name}(after={after})")
    insert_codec(head, tail, parse_codec(codec), 0)
    for rate in (0.3, 1.0):
        counted(head.with_rate(rate), tail)
    head.embeddings.requires_grad_(False)
    counted(head.with_rate(0.3), tail)
    if name in GATED:  # gates alone are trained, through blocks that are not
        head.blocks.requires_grad_(False)
        counted(head.with_rate(0.3), tail)


def counted(head, tail):
    with FlopCounterMode(display=False) as counter:
        tokens = head(images(5))[0]
        assert head.forward_flops(5) == counter.get_total_flops()
        logits = tail(tokens)
        logits.sum().backward()
    assert whole_flops(head, tail, 5) == counter.get_total_flops()


def test_blocks_of_dinov2_go_on_with_fewer_tokens():
    module = Dinov2ForImageClassification(Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=4,
        num_labels=5,
    ))  # fmt: skip
    module.set_attn_implementation("eager")
    for name in ("cls_attention", "dual_gate"):
        head, tail = split_dinov2(module.train(), 2)
        insert(head, parse(f"{name}(after=1)", TOKENS), 0)
        assert head.with_rate(0.3)(images())[0].shape == (6, 1 + 5, 16)
        counted(head.with_rate(0.3), tail)


@pytest.mark.parametrize("name", GATED)
def test_operations_at_drawn_rates_are_the_mean(name):
    head, tail = halves(f"{name}(after=2)")
    each = [head.with_rate(count / PATCHES) for count in range(1, PATCHES + 1)]
    assert head.flops(3) == 3 * (sum(one.flops(1) for one in each) // PATCHES)
    assert head.forward_flops(3) == 3 * (sum(one.forward_flops(1) for one in each) // PATCHES)
    wanted = sum(whole_flops(one, tail, 1) for one in each) / PATCHES
    assert whole_flops(head, tail, 1) == pytest.approx(wanted, abs=2)


def test_another_rate_shares_weights_and_leaves_the_head_as_it_is():
    head, _ = halves("dual_gate(rate=0.5)")
    head.eval()
    other = head.with_rate(0.1)
    assert [id(weight) for weight in head.parameters()] == [id(w) for w in other.parameters()]
    assert head(images())[0].shape[1] == 1 + 8 and other(images())[0].shape[1] == 1 + 2
    assert head.smashed_shape == other.smashed_shape == (17, 16)
    assert copy.deepcopy(other)(images())[0].shape[1] == 1 + 2
    for rate in (0, 1.01, float("nan")):
        with pytest.raises(ValueError, match=r"rate must be in \(0, 1\]"):
            head.with_rate(rate)
    with pytest.raises(ValueError, match="lets all tokens go on"):
        halves()[0].with_rate(0.5)


def test_memory_is_less_where_later_blocks_have_fewer_tokens():
    whole, late, early = (
        halves(tokens)[0].activation_bytes(1)
        for tokens in ("none()", "norm(rate=0.25)", "norm(rate=0.25, after=1)")
    )
    assert early < late == whole


@pytest.mark.parametrize("tokens", ["cls_attention(rate=0.4)", "dual_gate()"])
@pytest.mark.parametrize("codec", CODECS)
def test_every_codec_takes_what_is_left(codec, tokens):
    spec = {"fedlite": "fedlite(length=4, groups=4, centroids=2)"}.get(codec, codec)
    head, tail = halves(tokens)
    insert_codec(head, tail, parse_codec(spec), 0)
    link = Link(parse_codec(spec), parse_codec("identity"))
    found = Split().step(Flat(head), Flat(tail), link, batch(), at())
    names = [
        torch.full((weight.numel(),), "selector" in name)
        for name, weight in head.named_parameters()
    ]
    of_gates = torch.cat(names)
    assert found.of_head[~of_gates].abs().sum() > 0 and found.of_tail.abs().sum() > 0
    assert not of_gates.any() or found.of_head[of_gates].abs().sum() > 0
