"""Sparse heads: masks, layers and bytes as worked out by hand, and runs that stay equal."""

import copy

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import AutoModelForImageClassification

from fl_split.exchange.stacked import StackedHead, gives_same_bits
from fl_split.exchange.whole import joined
from fl_split.flat import Flat, copy_trained, trained
from fl_split.models.own import OwnModel
from fl_split.models.sparse_linear import SparseLinear, sparse_layers, sparsify
from fl_split.models.sparsity import SPARSITIES, NoSparsity, Predefined, Random, degrees
from fl_split.models.vit import ViT, split
from fl_split.optimizers import AdamW
from fl_split.recipe.descent import Descent
from simulations.clients import together
from simulations.runs.experiment import Experiment
from simulations.runs.saved_model import config_of, plain, tensors
from simulations.runs.setup import prepare
from strategies import STRATEGIES

SMALL = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
SPARSE = "predefined(density=0.25)"
WEIGHTS = 16 * 64
"""Of each of the two linear layers of an MLP of `SMALL`, and of the tiny runs; 4 * 16 * 16 of
attention come beside them."""


def a_head(cut=1, sparsity=None, **known):
    model = SMALL.build(image_size=8, channels=1, num_classes=10, seed=0)
    head, _ = split(model, cut)
    return head, sparsify(head, sparsity or NoSparsity(), **known)


def a_layer(kind=Predefined, density=0.25, scale=1.0):
    torch.manual_seed(0)
    dense = nn.Linear(12, 8)
    mask = kind(density=density).mask(8, 12, 0)
    return dense, mask, SparseLinear(dense, mask, scale)


def is_equal(first, second):
    columns = ["accuracy", "loss", "train_loss", "samples"]
    return first.rounds[columns].equals(second.rounds[columns]) and first.equals(second)


# Masks.


@pytest.mark.parametrize(
    ("outputs", "inputs", "density", "per_output", "per_input"),
    [
        (8, 12, 0.25, 3, 2),  # gcd 4: quarters
        (12, 8, 0.25, 2, 3),
        (12, 8, 0.75, 6, 9),
        (64, 16, 0.0625, 1, 4),
        (7, 7, 0.3, 2, 2),  # 2/7 is nearer than 3/7
        (2, 2, 0.25, 1, 1),  # as far from 0 as from 1/2
        (16, 16, 1.0, 16, 16),
        (5, 3, 0.6, 3, 5),  # no common divisor: all or nothing
    ],
)
def test_every_output_has_as_many_inputs_and_every_input_as_many_outputs(
    outputs, inputs, density, per_output, per_input
):
    assert degrees(outputs, inputs, density) == (per_output, per_input)
    for seed in range(5):
        mask = Predefined(density=density, seed=seed).mask(outputs, inputs, 0)
        assert mask.sum(dim=1).tolist() == [per_output] * outputs
        assert mask.sum(dim=0).tolist() == [per_input] * inputs
        same = Random(density=density, seed=seed).mask(outputs, inputs, 0)
        assert int(same.sum()) == outputs * per_output


def test_a_random_mask_is_not_biregular():
    counts = Random(density=0.25).mask(16, 64, 0).sum(dim=1)
    assert len(set(counts.tolist())) > 1


@pytest.mark.parametrize("kind", [Predefined, Random])
def test_each_place_is_as_likely_as_any_other(kind):
    """A share d of n draws, with a standard deviation of sqrt(d (1 - d) / n) for each place."""
    draws = [kind(density=0.25, seed=seed).mask(8, 12, 0).double() for seed in range(600)]
    share, deviation = torch.stack(draws).mean(dim=0), (0.25 * 0.75 / 600) ** 0.5
    assert float((share - 0.25).abs().max()) < 4.5 * deviation


def test_masks_are_public():
    """They depend on their own seed and on the place of a layer, and on nothing else."""

    def masks(**keys):
        base = {"clients": 5, "cut": 1, "sparsity": SPARSE, "engine": "inline()"}
        found = prepare(Experiment.from_dict({**base, **keys})).head
        return [layer.index for layer in sparse_layers(found)]

    first = masks()
    assert all(map(torch.equal, first, masks(seed=7)))
    assert all(map(torch.equal, first, masks(cut=3)[:2]))
    assert all(map(torch.equal, first, masks(sparsity=SPARSE[:-1] + ", layers='all')")[4:]))
    assert not any(map(torch.equal, first, masks(sparsity=SPARSE[:-1] + ", seed=1)")))
    two = masks(cut=2)
    assert not torch.equal(two[0], two[2]), "two blocks of the same shape"


# Layers.


def test_with_all_weights_it_is_the_dense_layer_bit_for_bit():
    dense, _, sparse = a_layer(density=1.0)
    inputs = torch.randn(5, 3, 12)
    outputs = dense(inputs), sparse(inputs)
    assert torch.equal(*outputs)
    wanted = torch.autograd.grad(outputs[0].square().sum(), [dense.weight, dense.bias])
    found = torch.autograd.grad(outputs[1].square().sum(), [sparse.values, sparse.bias])
    assert torch.equal(found[0], wanted[0].flatten()) and torch.equal(found[1], wanted[1])


@pytest.mark.parametrize("kind", [Predefined, Random])
def test_gradients_are_those_of_a_masked_dense_layer_where_weights_are(kind):
    dense, mask, sparse = a_layer(kind)
    inputs = torch.randn(5, 3, 12, requires_grad=True)
    outputs = nn.functional.linear(inputs, dense.weight * mask, dense.bias), sparse(inputs)
    torch.testing.assert_close(*outputs)
    parameters = [dense.weight, dense.bias, inputs], [sparse.values, sparse.bias, inputs]
    wanted, found = (
        torch.autograd.grad(output.sin().sum(), weights)
        for output, weights in zip(outputs, parameters, strict=True)
    )
    torch.testing.assert_close(found[0], wanted[0][mask])
    torch.testing.assert_close(found[1:], wanted[1:])
    assert len(found[0]) == 24


def test_weights_from_scratch_keep_the_variance_of_outputs_and_trained_ones_their_values():
    """Of 256 inputs a quarter is left, at twice the weight: the same variance, 256 w^2."""
    before = {name: w.clone() for name, w in a_head()[0].named_parameters()}
    for is_trained, scale in ((False, 2.0), (True, 1.0)):
        head, _ = a_head(1, Predefined(density=0.25), is_trained=is_trained)
        layer = head.blocks[0].mlp.fc2
        kept = before["blocks.0.mlp.fc2.weight"].flatten()[layer.index]
        assert torch.equal(layer.values, scale * kept)
    wide = nn.Linear(256, 512, bias=False)
    inputs = torch.randn(500, 256, generator=torch.Generator().manual_seed(0))
    for sparsity in (Predefined(density=0.25), Random(density=0.25)):
        sparse = SparseLinear(wide, sparsity.mask(512, 256, 0), 2.0)
        with torch.no_grad():
            ratio = float(sparse(inputs).var() / wide(inputs).var())
        assert ratio == pytest.approx(1, abs=0.03)


def test_which_layers_are_sparse_is_told():
    head, notes = a_head(2, Predefined(density=0.3))
    assert [name for name, part in head.named_modules() if isinstance(part, SparseLinear)] == [
        f"blocks.{block}.mlp.{name}" for block in (0, 1) for name in ("fc1", "fc2")
    ]
    assert notes == [
        "sparsity: 4 linear layers of the head have 1,280 of 4,096 weights",
        "sparsity: 16 x 64 weights cannot have density 0.3; 0.3125 is nearest",
    ]
    head, notes = a_head(1, Predefined(layers="all"))
    assert notes == ["sparsity: 6 linear layers of the head have 768 of 3,072 weights"]
    assert not any(isinstance(part, nn.Linear) for part in head.modules())
    assert a_head(1, NoSparsity())[1] == []


def test_sparse_weights_decay_and_biases_do_not():
    _, _, sparse = a_layer()
    before = copy.deepcopy(sparse)
    flat = Flat(sparse)
    descent = Descent(flat, AdamW(lr=0.1, weight_decay=0.5, no_decay=True))
    descent.step(torch.zeros_like(flat.vector))
    torch.testing.assert_close(sparse.values, before.values * (1 - 0.1 * 0.5))
    assert torch.equal(sparse.bias, before.bias)


def test_clients_share_the_places_and_not_the_values():
    head, _ = a_head(1, Predefined())
    (first, *_), (second, *_) = sparse_layers(head), sparse_layers(copy_trained(head))
    assert first.index is second.index
    assert first.values.data_ptr() != second.values.data_ptr()


# What is counted.


@pytest.mark.parametrize(("layers", "left"), [("mlp", 1024 + 512), ("all", 256 + 512)])
def test_operations_are_those_of_the_weights_that_there_are(layers, left):
    """Of 5 tokens of 16 numbers, with 4 patches of 16 pixels; attention has two products."""
    head, _ = a_head(1, Predefined(density=0.25, layers=layers))
    patches, attention = 2 * 4 * 16 * 16, 4 * 5**2 * 16
    assert head.forward_flops(7) == 7 * (patches + 2 * 5 * left + attention)
    assert head.flops(7) == 7 * (2 * patches + 6 * 5 * left + 3 * attention)


@pytest.mark.parametrize("samples", [1, 16])
def test_memory_counts_the_matrices_once_for_a_batch(samples):
    dense, sparse = a_head()[0], a_head(1, Predefined(density=1.0))[0]
    more = sparse.activation_bytes(samples) - dense.activation_bytes(samples)
    assert more == 4 * 2 * WEIGHTS


@pytest.mark.parametrize("strategy", ["parallel()", "fedavg()"])
def test_the_bytes_of_weights_fall_by_those_that_are_not_there(simulate, strategy):
    """Six clients get the weights and give them back; three quarters of two layers are missing."""
    keys = {"strategy": strategy, "rounds": 1}
    dense, sparse = (simulate(**keys, sparsity=one).rounds.iloc[0] for one in ("none()", SPARSE))
    for column in ("head_bytes_up", "head_bytes_down"):
        assert dense[column] - sparse[column] == 6 * 4 * 2 * WEIGHTS * 3 // 4
    assert dense["payload_bytes_up"] == sparse["payload_bytes_up"]


# Runs.


def test_a_density_of_one_changes_no_bit(simulate, reference):
    keys = {"rounds": 1, "stack": 1}
    found = simulate(**keys, sparsity="predefined(density=1.0, layers='all')")
    assert is_equal(found, reference(**keys))


@pytest.mark.parametrize("sparsity", [SPARSE, "random(density=0.1, layers='all')"])
def test_the_saved_model_is_dense_and_as_good_as_the_one_that_was_tested(sparsity, simulate):
    outcome = simulate(sparsity=sparsity, rounds=1)
    saved = AutoModelForImageClassification.from_pretrained(outcome.folder)
    zeros = [int((layer.mlp.fc1.weight == 0).sum()) for layer in saved.vit.layers]
    kept = 256 if sparsity == SPARSE else 128  # 2/16 is nearest to 0.1
    assert zeros == [WEIGHTS - kept, 0, 0]
    test = prepare(Experiment.from_dict(outcome.summary["experiment"])).test
    pixels, labels = test.batch(np.arange(len(test.labels)), torch.device("cpu"))
    right = saved(pixels).logits.argmax(dim=1) == labels
    assert float(right.double().mean()) == outcome.rounds["accuracy"].iloc[-1]


def test_the_dense_model_gives_the_logits_of_the_sparse_one(tmp_path):
    spec = Predefined(density=0.25, layers="all")
    model = SMALL.build(image_size=8, channels=1, num_classes=10, seed=0)
    head, tail = split(model, 1)
    sparsify(head, spec)
    flat = Flat(head)
    flat.load(flat.numpy() + 0.01)
    images = torch.randn(4, 1, 8, 8)
    wanted = joined(head, tail, images)
    dense = plain(model)
    assert type(dense.vit.layers[0].mlp.fc1) is nn.Linear
    assert sparse_layers(model), "training goes on with the sparse one"
    assert torch.equal(dense(images).logits, wanted)
    config_of(dense).save_pretrained(tmp_path)
    save_file(
        tensors(dense, is_transformers=True), tmp_path / "model.safetensors", {"format": "pt"}
    )
    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(images).logits, wanted)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy_trains_a_sparse_head(strategy, simulate):
    found = simulate(strategy=f"{strategy}()", sparsity=SPARSE, rounds=1, clients=4, local_steps=1)
    weight = found.model["vit.layers.0.mlp.fc1.weight"]
    assert int((weight != 0).sum()) == WEIGHTS // 4


def test_sflv1_equals_fedavg_with_a_sparse_head(simulate):
    first, second = (
        simulate(strategy=one, sparsity=SPARSE, rounds=1) for one in ("sflv1()", "fedavg()")
    )
    assert is_equal(first, second)


def test_the_end_of_a_u_shape_stays_dense():
    keys = {"cut": 1, "end": 2, "clients": 5, "sparsity": SPARSE, "engine": "inline()"}
    setup = prepare(Experiment.from_dict(keys))
    assert len(sparse_layers(setup.head)) == 2
    assert not sparse_layers(setup.head.end) and not sparse_layers(setup.tail)


def test_a_stack_of_sparse_heads_gives_the_same_bits(simulate, monkeypatch):
    head, _ = a_head(2, Predefined(layers="all"))
    assert gives_same_bits(StackedHead(head), head, (3, 1, 8, 8))
    stacked, forward = [], together._forward

    def noted(stack):
        stacked.append(len(stack))
        return forward(stack)

    monkeypatch.setattr(together, "_forward", noted)
    keys = {"sparsity": "predefined(layers='all')", "batch_size": 16, "codec": "adc(ratio=0.5)"}
    keys |= {"rounds": 1, "local_steps": 3}
    alone = simulate(**keys, stack=1)
    assert not stacked
    assert is_equal(alone, simulate(**keys, stack=3)) and 3 in stacked


def test_a_stopped_run_goes_on_as_if_it_never_stopped(simulate, resume):
    """Of clients with heads and moments of their own."""
    keys = {"strategy": "parallel(average_heads=False)", "sparsity": SPARSE}
    keys |= {"checkpoint_every": 1, "clients": 3}
    whole = simulate(**keys)

    def stop(row, result):
        if row["round"] == 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(watch=stop, **keys)
    half = type(whole)(whole.folder.parent / "run2")
    resume(half)
    assert is_equal(whole, half)


@pytest.mark.slow
def test_engines_agree_on_a_sparse_head(on_ray, reference, through_state):
    keys = {"sparsity": "random(density=0.25, layers='all')", "codec": "adc(ratio=0.5)"}
    keys |= {"clients": 3, "rounds": 1}
    inline = reference(**keys)
    assert is_equal(inline, on_ray(**keys))
    assert is_equal(inline, through_state(**keys))


def test_frozen_blocks_stay_dense():
    base = {"cut": 2, "clients": 5, "sparsity": SPARSE, "engine": "inline()", "freeze": "block1"}
    setup = prepare(Experiment.from_dict(base))
    assert type(setup.head.blocks[0].mlp.fc1) is nn.Linear
    assert len(sparse_layers(setup.head.blocks[1])) == 2
    assert [note for note in setup.model_notes if "frozen ones stay dense" in note]
    assert not any(p.dim() > 1 for p in trained(setup.head.blocks[0]))


# Refused.


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"model": "lenet(image_size=16)", "cut": 1}, "sparsity: it is for blocks of a Transf"),
        ({"model": "resnet18()", "cut": 1}, "sparsity: it is for blocks of a Transformer"),
        ({"freeze": "block1, block2"}, "sparsity: the client's blocks have no such layer that"),
        ({"sparsity": "predefined(density=0.005)"}, "sparsity: density=0.005 leaves .* 1/64 = "),
        ({"sparsity": "random(density=0.005)"}, "sparsity: density=0.005 leaves 64 x 256 w"),
        ({"sparsity": "predefined(density=0.0)"}, "sparsity: .*density must be greater than 0"),
        ({"sparsity": "random(density=1.5)"}, "sparsity: .*density must be less than or equal"),
        ({"sparsity": "predefined(layers='mlps')"}, "sparsity: .*must be 'mlp' or 'all'"),
        ({"sparsity": "predefined(seed=-1)"}, "sparsity: .*seed must be"),
    ],
)
def test_what_cannot_be_sparse_is_refused(keys, message):
    with pytest.raises(ValueError, match=message):
        prepare(Experiment.from_dict({"clients": 5, "sparsity": SPARSE, **keys}))


def test_a_model_of_stages_and_adapters_are_refused():
    stages = [nn.Sequential(nn.Flatten(), nn.Linear(64, 8)), nn.Linear(8, 10)]
    own = OwnModel(nn.Sequential(*stages))
    module = own.build(image_size=8, channels=1, num_classes=10, seed=0)
    with pytest.raises(ValueError, match="blocks of a Transformer"):
        sparsify(own.split(module, 1)[0], Predefined())
    head, _ = a_head()
    head.blocks[0].attention.q_proj.base_layer = nn.Identity()  # as peft has it
    with pytest.raises(ValueError, match="lora"):
        sparsify(head, Predefined())


@pytest.mark.parametrize("mask", [torch.ones(64, 16), torch.zeros(64, 16, dtype=torch.bool)])
def test_a_mask_of_others_is_checked(mask):
    class Theirs(NoSparsity):
        layers = "mlp"

        def mask(self, outputs, inputs, number):
            return mask

    with pytest.raises(ValueError, match=r"mask must return bool of shape \(64, 16\)"):
        a_head(1, Theirs())


@pytest.mark.parametrize("name", SPARSITIES)
def test_masks_of_every_entry_are_the_same_each_time(name):
    first, again = (SPARSITIES[name]().mask(8, 16, 3) for _ in range(2))
    assert first.shape == (8, 16) and first.dtype == torch.bool and bool(first.any())
    assert np.array_equal(first, again)
