"""How many heads run as one: formulas for a GPU, a number that is asked for, memory that is short.

A GPU is not at hand. Its formulas are called directly, on the CPU, and compared with the loop over
clients; what it does with stacks of one size runs on tensors that pretend (see pretend.py).
"""

import json
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from fl_split.codecs.adc import sum_of_bags, sum_of_products
from fl_split.exchange import stacked_layers as layers
from fl_split.exchange.stacked import StackedHead
from fl_split.flat import Flat
from fl_split.models.vit import ViT, split
from fl_split.recipe.precision import Precision
from fl_split.spec_errors import SpecError
from simulations.clients import stack_size
from simulations.engines.ray_start import too_many
from simulations.runs import checkpoint
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies import TrainingFailed

CLOSE = {"rtol": 1e-5, "atol": 1e-6}
PLAIN = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)"


def drawn(*shape):
    """Numbers that are the same each time, a bit off zero."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(len(shape))) + 0.1


def test_layer_norm_for_a_gpu_has_the_gradients_of_one_layer_norm_per_client():
    clients, samples, tokens, width, eps = 3, 4, 5, 16, 1e-6
    rows = drawn(clients * samples, tokens, width)
    weight, bias = drawn(clients, width), drawn(clients, width) + 1
    gradient = drawn(clients * samples, tokens, width).flip(0)
    wanted = []
    for part, own, other, given in zip(
        rows.chunk(clients), weight, bias, gradient.chunk(clients), strict=True
    ):
        leaves = [one.clone().requires_grad_() for one in (part, own, other)]
        output = functional.layer_norm(leaves[0], (width,), *leaves[1:], eps)
        wanted.append(torch.autograd.grad(output, leaves, given))
    inputs, weights, biases = zip(*wanted, strict=True)
    _, mean, rstd = torch.native_layer_norm(rows, (width,), None, None, eps)
    found = layers.norm_backward(gradient, rows, weight, bias, mean, rstd)
    for mine, its in zip(
        found, (torch.cat(inputs), torch.stack(weights), torch.stack(biases)), strict=True
    ):
        torch.testing.assert_close(mine, its, **CLOSE)


@pytest.mark.parametrize(("kernel", "stride"), [((4, 4), (4, 4)), ((2, 4), (2, 4)), ((3, 3), 2)])
def test_patch_embedding_for_a_gpu_is_that_of_one_convolution_per_client(kernel, stride):
    clients, samples = 3, 2
    images, weight = drawn(clients * samples, 3, 8, 12), drawn(clients, 5, 3, *kernel)
    bias = drawn(clients, 5)
    parts = zip(images.chunk(clients), weight, bias, strict=True)
    wanted = torch.cat([functional.conv2d(*part, stride=stride) for part in parts])
    found = layers.convolve(images, weight, bias, stride)
    torch.testing.assert_close(found, wanted, **CLOSE)


def head_and_batches(clients=3, samples=4):
    model = ViT(hidden_size=16, num_attention_heads=2, patch_size=4, num_hidden_layers=3)
    head, _ = split(model.build(image_size=8, channels=1, num_classes=4, seed=0), 2)
    draw = torch.Generator().manual_seed(0)
    vectors = []
    for _ in range(clients):
        flat = Flat(head)
        vectors.append(flat.vector.detach() + 0.1 * torch.randn(len(flat.vector), generator=draw))
    return head, vectors, torch.randn(clients * samples, 1, 8, 8, generator=draw)


def one_by_one(head, vectors, pixels, weights):
    """Tokens and gradients of heads that run alone."""
    tokens, gradients = [], []
    for vector, images, weight in zip(
        vectors, pixels.chunk(len(vectors)), weights.chunk(len(vectors)), strict=True
    ):
        flat = Flat(head)
        flat.load(vector)
        tokens.append(head(images)[0])
        gradients.append(flat.differentiate(tokens[-1:], [weight])[0])
    return torch.cat(tokens).detach(), torch.stack(gradients)


def test_a_whole_stack_with_the_formulas_of_a_gpu_is_close_to_heads_alone(monkeypatch):
    head, vectors, pixels = head_and_batches()
    weights = drawn(*head(pixels)[0].shape)
    tokens, gradients = one_by_one(head, vectors, pixels, weights)
    monkeypatch.setattr(layers, "norm_backward_by_client", layers.norm_backward)
    monkeypatch.setattr(layers, "convolve_by_client", layers.convolve)
    found = StackedHead(head).run(vectors, pixels)
    torch.testing.assert_close(found.tokens.detach(), tokens, **CLOSE)
    torch.testing.assert_close(found.differentiate(weights), gradients, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bf16", "fp16"])
def test_a_stack_in_half_precision_is_close_to_heads_alone(name):
    """Also with gradients that fp16 alone would lose."""
    head, vectors, pixels = head_and_batches()
    precision, weights = Precision(name), 2.0**-30 * drawn(*head(pixels)[0].shape)
    tokens, gradients = one_by_one(head, vectors, pixels, weights)
    found = StackedHead(head, precision=precision).run(vectors, pixels)
    assert found.tokens.dtype == torch.float32
    assert not torch.equal(found.tokens.detach(), tokens)
    for mine, its in ((found.tokens.detach(), tokens), (found.differentiate(weights), gradients)):
        assert float((mine - its).norm() / its.norm()) < 0.02


def test_a_stack_in_fp16_gives_the_bits_of_heads_alone_whatever_the_others_gradients():
    """Each client's gradient is scaled by itself: of sizes 1, 1/32 and 1/1024 none is rounded."""
    head, vectors, pixels = head_and_batches()
    precision = Precision("fp16")
    weights = drawn(*head(pixels)[0].shape)
    weights = torch.cat([part / 32**k for k, part in enumerate(weights.chunk(3))])
    wanted = []
    for vector, images, weight in zip(vectors, pixels.chunk(3), weights.chunk(3), strict=True):
        stack = StackedHead(head, precision=precision).run([vector], images)
        wanted.append(stack.differentiate(weight))
    found = StackedHead(head, precision=precision).run(vectors, pixels).differentiate(weights)
    assert torch.equal(found, torch.cat(wanted))


def test_a_stack_that_is_filled_up_gives_a_client_the_same_bits_whoever_is_beside_it():
    """Shapes are then the same for one client and for several, and some may ask for gradients."""
    head, vectors, pixels = head_and_batches(clients=3, samples=4)
    weights = drawn(*head(pixels)[0].shape)
    tokens, gradients = one_by_one(head, vectors, pixels, weights)
    stacked = StackedHead(head, size=4)
    together = stacked.run(vectors, pixels)
    assert together.members == 3 and together.tokens.shape == tokens.shape
    torch.testing.assert_close(together.tokens.detach(), tokens, **CLOSE)
    whole = together.differentiate(weights)
    torch.testing.assert_close(whole, gradients, rtol=1e-5, atol=1e-5)
    assert torch.equal(together.differentiate(weights), whole)  # asked for again
    for number in range(3):
        own = slice(4 * number, 4 * number + 4)
        alone = stacked.run([vectors[number]], pixels[own])
        assert torch.equal(alone.tokens, together.tokens[own])
        assert torch.equal(alone.differentiate(weights[own])[0], whole[number])


def test_merging_by_products_is_merging_by_sums_of_bags():
    """Both against the mean of each cluster, token by token."""
    tokens, cluster = drawn(7, 5, 6), torch.tensor([0, 1, 0, 2, 1, 0, 2])
    kept, sizes = torch.tensor([[0, 3], [0, 1], [4, 2]]), torch.tensor([3, 2, 2])
    wanted = torch.stack(
        [
            torch.stack([tokens[cluster == number][:, place].sum(dim=0) for place in places])
            for number, places in enumerate(kept.tolist())
        ]
    )
    for formula in (sum_of_bags, sum_of_products):
        leaf = tokens.clone().requires_grad_()
        found = formula(leaf, cluster, kept, sizes)
        torch.testing.assert_close(found.detach(), wanted, **CLOSE)
        (gradient,) = torch.autograd.grad(found, [leaf], torch.ones_like(found))
        marks = torch.zeros(7, 5)
        for sample, number in enumerate(cluster.tolist()):
            marks[sample, kept[number]] = 1  # each kept token counts once, all others not at all
        assert torch.equal(gradient, marks[..., None].expand_as(tokens))


@pytest.mark.parametrize(
    ("free", "member", "clients", "wanted"),
    [
        (16 * 2**30, 2**20, 100, 64),  # 4 GiB are room for 4,096, but there are 100
        (16 * 2**30, 2**20, 1000, 128),  # the most
        (2**30, 10 * 2**20, 100, 16),  # 256 MiB are room for 25
        (2**20, 2**30, 100, 1),
        (0, 0, 1, 1),
    ],
)
def test_the_size_on_a_gpu_is_the_power_of_two_that_fits_a_quarter_of_free_memory(
    free, member, clients, wanted
):
    assert stack_size.planned(free, member, clients) == wanted


def test_on_a_gpu_the_size_follows_free_memory_and_never_a_clock(monkeypatch):
    head, *_ = head_and_batches()
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (2**30, 2**31))
    monkeypatch.setattr(stack_size, "can_stack", lambda exchange, head: True)
    member = head.activation_bytes(16) + 16 * sum(p.numel() for p in head.parameters())
    size = stack_size.of(torch.device("cuda:0"), None, head, 16, 1000)
    assert size * member <= 2**28 and (size == 128 or 2 * size * member > 2**28)
    assert stack_size.of(torch.device("cuda:0"), None, head, 16, 1000, 24) == 24
    assert stack_size.of(torch.device("cpu"), None, head, 16, 1000) == 0  # trials decide
    assert stack_size.of(torch.device("mps"), None, head, 16, 1000) == 1


@pytest.mark.parametrize("value", ["all", 0, -1, 2.5, True, "8"])
def test_what_is_no_size_of_a_stack_is_told(value):
    with pytest.raises(SpecError, match="stack must be 'auto' or a number from 1"):
        Experiment.from_dict({"stack": value})


CHANGES = {
    "model": PLAIN, "cut": 2, "clients": 6, "fraction": 1.0, "partition": "iid()",
    "batch_size": 32, "local_steps": 2, "rounds": 2, "checkpoint_every": 1,
}  # fmt: skip


class Short:
    """Memory for stacks of so many clients at most."""

    def __init__(self, monkeypatch, most):
        self.sizes, run = [], StackedHead.run

        def limited(stacked, vectors, pixels):
            self.sizes.append(len(vectors))
            if len(vectors) > most:
                raise torch.OutOfMemoryError("CUDA out of memory")
            return run(stacked, vectors, pixels)

        monkeypatch.setattr(StackedHead, "run", limited)
        # Whether bits are the same is tried before, of which the memory is another matter.
        monkeypatch.setattr("simulations.clients.worker.gives_same_bits", lambda *_, **__: True)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_a_size_that_is_asked_for_is_taken_and_changes_no_bit(simulate, monkeypatch, precision):
    alone = simulate(**CHANGES, stack=1, precision=precision)
    seen = Short(monkeypatch, most=99)
    found = simulate(**CHANGES, stack=3, precision=precision)
    assert set(seen.sizes) <= {2, 3} and 3 in seen.sizes
    assert found.equals(alone)
    assert found.summary["stack"] == 3 and alone.summary["stack"] == 1


def test_one_head_at_a_time_never_runs_a_stack(simulate, monkeypatch):
    seen = Short(monkeypatch, most=0)
    simulate(**CHANGES, stack=1)
    assert not seen.sizes


def test_memory_that_is_short_halves_the_stack_says_so_once_and_loses_nothing(
    simulate, monkeypatch
):
    alone = simulate(**CHANGES, stack=1)
    seen = Short(monkeypatch, most=2)
    with pytest.warns(UserWarning, match="memory is short for 8 clients' heads as one") as told:
        found = simulate(**CHANGES, stack=8)
    assert len([one for one in told if "memory is short" in str(one.message)]) == 1
    failed = [place for place, size in enumerate(seen.sizes) if size > 2]
    assert 0 < len(failed) <= 2 and set(seen.sizes[failed[-1] + 1 :]) == {2}
    assert found.equals(alone) and not found.clients["dropped"].any()
    assert found.summary["stack"] == 2


def test_a_stack_that_never_fits_ends_in_heads_alone(simulate, monkeypatch):
    alone = simulate(**CHANGES, stack=1)
    seen = Short(monkeypatch, most=0)
    with pytest.warns(UserWarning, match="memory is short"):
        found = simulate(**CHANGES, stack=4)
    assert seen.sizes and found.equals(alone) and found.summary["stack"] == 1


def test_a_gpu_too_small_for_one_client_ends_the_run_in_one_line_with_a_checkpoint(
    simulate, monkeypatch, tmp_path
):
    """In round 2: round 1 is kept, though a checkpoint is due every fifth round only."""
    forward, calls = nn.Linear.forward, []

    def after_a_round(row, result):
        calls.append(row["round"])

    def short(layer, rows):
        if calls:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return forward(layer, rows)

    monkeypatch.setattr(nn.Linear, "forward", short)
    with pytest.raises(TrainingFailed) as error:
        simulate(**{**CHANGES, "checkpoint_every": 5, "stack": 1}, watch=after_a_round)
    text = str(error.value)
    assert text.startswith("the GPU ran out of memory (client ") and "\n" not in text
    assert "batch_size" in text
    (folder,) = [path.parent for path in tmp_path.glob("*/summary.json")]
    assert json.loads((folder / "summary.json").read_text())["ended_by"] == "out of memory"
    assert checkpoint.read(folder)[1].rounds == 1


def test_a_run_that_goes_on_takes_the_stack_that_fitted(monkeypatch):
    """Less than what was asked for, where memory was short before; on a CPU trials decide."""
    for asked, wanted in ((64, 64), ("auto", 0)):
        experiment = Experiment.from_dict({**CHANGES, "stack": asked})
        on_cpu, on_gpu = prepare(experiment), prepare(experiment)
        assert on_cpu.stack(16) == wanted
        with monkeypatch.context() as patch:
            patch.setattr("simulations.runs.setup.find", lambda name: torch.device("cuda"))
            assert on_gpu.stack(16) == 16


def test_what_did_not_fit_is_freed_before_it_is_tried_again(simulate, monkeypatch):
    """A traceback would hold the graph of the failed stack in memory."""
    run, failed, alive = StackedHead.run, [], []

    def short(stacked, vectors, pixels):
        alive.append(any(one() is not None for one in failed))
        found = run(stacked, vectors, pixels)
        if len(vectors) > 2:
            failed.append(weakref.ref(found.tokens))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 MiB")
        return found

    monkeypatch.setattr(StackedHead, "run", short)
    monkeypatch.setattr("simulations.clients.worker.gives_same_bits", lambda *_, **__: True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        simulate(**{**CHANGES, "stack": 4, "rounds": 1})
    assert len(failed) >= 1 and len(alive) > len(failed)
    assert not any(alive)


def test_the_size_in_use_is_kept_with_the_run_and_taken_up_again(simulate):
    """Of a GPU: there "auto" depends on memory that was free when the run began."""
    outcome = simulate(**{**CHANGES, "rounds": 1})
    folder = outcome.folder
    experiment = Experiment.from_dict({**CHANGES, "engine": "inline()"})
    checkpoint.Checkpoint(1, {}, {}, {}, stack=16).write(folder, experiment)
    (folder / "experiment.toml").write_text(experiment.to_toml())
    assert checkpoint.read(folder)[1].stack == 16


@pytest.mark.parametrize(
    ("device", "gpus", "told"),
    [
        ("cuda", 2, "4 workers need a GPU each, and there are 2; take ray(workers=2)"),
        ("cuda:1", 1, "device='cuda:1' is one GPU, for one worker; take ray(workers=1)"),
    ],
)
def test_more_workers_than_gpus_are_refused_in_one_line(device, gpus, told):
    assert too_many(4, gpus, device).startswith(told)


def test_ray_takes_a_worker_per_gpu_and_no_more(monkeypatch):
    """Refused before Ray is started."""
    from simulations.engines.local_grid import EngineError
    from simulations.engines.ray_engine import Ray

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    refused = pytest.raises(EngineError, match="3 workers need a GPU each, and there are 2")
    with refused, Ray(workers=3).session(None, "cuda"):
        pass


def test_no_warning_where_memory_is_not_short(simulate):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        found = simulate(**CHANGES, stack=2)
    assert json.loads((found.folder / "summary.json").read_text())["stack"] == 2
    assert np.isfinite(found.rounds["loss"]).all()
