"""Models given as objects: trained as torch trains them, or refused in one line."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils.parametrizations import spectral_norm

import fl_split as fs
from fl_split.codecs import Identity
from fl_split.exchange.link import Link
from fl_split.exchange.protocol import Batch
from fl_split.exchange.split import Split
from fl_split.flat import Flat, flatten
from fl_split.models.lenet import LeNet
from fl_split.models.norms import BatchNorm
from fl_split.models.own import OwnModel
from fl_split.optimizers import SGD
from fl_split.recipe.descent import Descent
from fl_split.seeds import StepId

SIDE = 8
RUN = {"clients": 4, "rounds": 1, "batch_size": 64, "engine": "inline()", "progress": False}


@pytest.fixture
def tiny(tmp_path):
    def run(**keys):
        return fs.run(**{**RUN, **keys}, out=tmp_path / f"run{len([*tmp_path.iterdir()])}")

    return run


def build(module):
    spec = OwnModel(module)
    return spec, spec.build(image_size=SIDE, channels=1, num_classes=10, seed=0).train()


def pixels(count=6, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, SIDE, SIDE, generator=draw)


def classifier(width=4):
    return nn.Sequential(nn.Flatten(), nn.Linear(width * SIDE**2, 10))


def convolution(channels=1, width=4):
    return nn.Conv2d(channels, width, 3, padding=1)


class Rows(nn.Module):
    """Images (B, 1, 8, 8) as 8 tokens of width 8."""

    def forward(self, images):
        return images.flatten(1, 2)


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.MultiheadAttention(SIDE, 2, batch_first=True)

    def forward(self, tokens):
        return self.inner(tokens, tokens, tokens, need_weights=False)[0]


class Deep(nn.Module):
    """Images (B, 4, H, W) as (B, 4, 1, H, W) for a 3d norm."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm3d(4, momentum=0.5)

    def forward(self, images):
        return self.norm(images[:, :, None])[:, :, 0]


# Stages that are one after the other.


def test_stages_are_cut_where_one_says(tiny):
    def maker(image_size, channels, num_classes):
        return nn.Sequential(
            nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.Sequential(nn.Flatten(), nn.Linear(4 * (image_size - 2) ** 2, num_classes)),
        )  # fmt: skip

    run = tiny(model=maker, cut=2, seed=3)
    assert [*run.model.stages()] == ["0", "1", "2", "3"]
    module = maker(8, 1, 10)
    given = tiny(model=module, cut=2)
    assert given.summary["experiment"]["model"].startswith("object('Sequential'")
    assert tiny(model=[*module], cut=2).rounds["accuracy"].tolist() == (
        given.rounds["accuracy"].tolist()
    )


def repeated():
    relu = nn.ReLU()
    return nn.Sequential(convolution(), relu, convolution(4), relu, classifier())


def twice_on_one_side():
    layer = convolution(4)
    return nn.Sequential(convolution(), layer, nn.ReLU(), layer, classifier())


def frozen():
    module = nn.Sequential(convolution(), nn.ReLU(), convolution(4), classifier())
    for weight in (*module[0].parameters(), module[3][1].bias):
        weight.requires_grad_(False)
    return module


def normed():
    return nn.Sequential(
        nn.Sequential(convolution(), nn.BatchNorm2d(4, affine=False), Deep()),
        nn.Sequential(nn.ReLU(), nn.Flatten(), nn.BatchNorm1d(4 * SIDE**2, momentum=0.02)),
        nn.Sequential(nn.Linear(4 * SIDE**2, 10), nn.BatchNorm1d(10, track_running_stats=False)),
    )


def frozen_norm():
    module = nn.Sequential(convolution(), nn.BatchNorm2d(4), nn.PReLU(), classifier())
    module[1].requires_grad_(False)
    return module


class OwnForward(nn.Module):
    """Says by its own forward what its children do anyway; one child is called as a method."""

    def __init__(self):
        super().__init__()
        self.stages = convolution()
        self.nothing = None
        self.classifier = classifier()

    def forward(self, images):
        return self.classifier(self.stages(images))


@pytest.mark.parametrize(
    ("make", "cut"),
    [
        (repeated, 2),
        (repeated, 3),
        (twice_on_one_side, 1),
        (twice_on_one_side, 4),
        (frozen, 3),
        (normed, 1),
        (normed, 2),
        (frozen_norm, 1),
        (frozen_norm, 3),
        (OwnForward, "stages"),
    ],
)
def test_an_own_model_learns_as_torch_trains_it(make, cut):
    reference = make()
    spec, model = build(reference)
    head, tail = (Flat(half) for half in spec.split(model, cut))
    own = [Descent(flat, SGD(lr=0.05)) for flat in (head, tail)]
    theirs = torch.optim.SGD(reference.parameters(), lr=0.05)
    labels = torch.arange(6)
    for step in range(3):
        images = pixels(seed=step)
        theirs.zero_grad()
        loss = functional.cross_entropy(reference(images), labels)
        loss.backward()
        theirs.step()
        link = Link(Identity(), Identity())
        found = Split().step(head, tail, link, Batch(images, labels, 10), StepId(0, 1, 0, step))
        assert found.loss == pytest.approx(loss.item(), rel=1e-5)
        own[0].step(found.of_head)
        own[1].step(found.of_tail)
    mine, its = model.state_dict(), reference.state_dict()
    assert mine.keys() == its.keys()
    for name in mine:
        if "num_batches" not in name:
            torch.testing.assert_close(mine[name], its[name], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(model.eval()(images), reference.eval()(images))


class Residual(nn.Sequential):
    def forward(self, images):
        return super().forward(images) + images.mean()


class DropsBetween(nn.Sequential):
    def forward(self, images):
        return self[1](functional.dropout(self[0](images), 0.5, self.training))


class WithWeight(nn.Sequential):
    def __init__(self, *stages):
        super().__init__(*stages)
        self.shift = nn.Parameter(torch.zeros(1))

    def forward(self, images):
        return super().forward(images + self.shift)


class Failing(nn.Sequential):
    def forward(self, images, labels):
        return super().forward(images)


def shared_norm():
    norm = nn.BatchNorm2d(4)
    return nn.Sequential(convolution(), norm, nn.ReLU(), norm, classifier())


def lazy(image_size, channels, num_classes):
    return nn.Sequential(nn.LazyConv2d(4, 3), classifier())


def spectral(image_size, channels, num_classes):
    return nn.Sequential(spectral_norm(convolution()), classifier())


class DerivedNorm(nn.BatchNorm2d):
    """May do anything."""


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (nn.Sequential(nn.Flatten()), "needs two stages or more"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3, 10)), "fail for an image of shape"),
        (nn.Sequential(nn.Flatten(), nn.Linear(64, 7)), r"must give \(B, 10\)"),
        (3, "is no Model"),
        (lambda image_size, channels, num_classes: [1], "must return an nn.Module, got list"),
        (Residual(convolution(), classifier()), "other logits in evaluation than its stages"),
        (DropsBetween(convolution(), classifier()), "other logits in training than its stages"),
        (WithWeight(convolution(), classifier()), "'shift' is a weight of the model itself"),
        (Failing(convolution(), classifier()), "its forward fails for an image of shape"),
        (lazy, "'0.weight' has no size yet"),
        (spectral, "stage '0' changes '0.parametrizations.weight.0._u'"),
        (shared_norm(), "batch norm '1' runs more than once"),
        (
            nn.Sequential(convolution(), nn.BatchNorm2d(4, momentum=None), classifier()),
            "needs a momentum, such as 0.1, got None",
        ),
        *(
            (nn.Sequential(convolution(), nn.Sequential(layer), classifier()), f"stage '1' {what}")
            for layer, what in [
                (nn.InstanceNorm2d(4, track_running_stats=True), "changes '1.0.running_mean'"),
                (nn.SyncBatchNorm(4), "changes '1.0.running_mean'"),
                (DerivedNorm(4), "changes '1.0.running_mean'"),
            ]
        ),
    ],
)
def test_a_model_that_cannot_work_is_refused(tiny, model, said):
    with pytest.raises(ValueError, match=said) as caught:
        tiny(model=model, cut=1)
    assert str(caught.value).startswith("model: ")


def frozen_backbone():
    module = nn.Sequential(convolution(), nn.ReLU(), classifier())
    module[0].requires_grad_(False)
    return module


def frozen_classifier():
    module = nn.Sequential(convolution(), nn.ReLU(), classifier())
    module[2].requires_grad_(False)
    return module


@pytest.mark.parametrize(
    ("model", "place", "said"),
    [
        ([nn.Flatten(), nn.Linear(64, 10)], {"cut": 1}, "cut=1: the client's first stages have no"),
        (frozen_backbone(), {"cut": 2}, "cut=2: the client's first stages have no weights"),
        (frozen_classifier(), {"cut": 1}, "cut=1: the server's stages have no weights"),
        (repeated(), {"cut": 1, "end": 2}, "cut=1, end=2: the server's stages have no weights"),
        (
            [nn.Conv2d(1, 10, 8), nn.Conv2d(10, 10, 1), nn.Flatten()],
            {"cut": 1, "end": 2},
            "cut=1, end=2: the client's last stages have no weights",
        ),
        (twice_on_one_side(), {"cut": 2}, "the client's first stages and the server's stages sha"),
        (
            twice_on_one_side(),
            {"cut": 2, "end": 3},
            "cut=2, end=3: the server's stages have no weights",
        ),
    ],
)
def test_a_cut_that_cannot_work_is_refused_by_name(tiny, model, place, said):
    with pytest.raises(ValueError, match=said):
        tiny(model=model, **place)


# Layers that draw, are frozen, cost something.


class Functional(nn.Module):
    def forward(self, images):
        return functional.dropout(images, 0.3, self.training)


class Noisy(nn.Module):
    """Draws from NumPy."""

    def forward(self, images):
        return images + float(np.random.normal()) if self.training else images


@pytest.mark.parametrize(
    "layer", [Functional, nn.Dropout2d, nn.AlphaDropout, nn.RReLU, Noisy], ids=lambda k: k.__name__
)
def test_no_random_layer_depends_on_global_generators(tiny, layer):
    torch.manual_seed(7)
    model = nn.Sequential(convolution(), layer(), convolution(4), layer(), classifier())
    losses = []
    for seed in range(2):
        torch.manual_seed(seed)
        np.random.seed(seed)
        before = torch.get_rng_state(), np.random.get_state()[2]
        run = tiny(model=model, cut=2, rounds=2)
        losses.append(run.rounds["train_loss"].tolist())
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[2] == before[1]
    assert losses[0] == losses[1]


def test_only_parts_that_draw_are_seeded():
    module = nn.Sequential(convolution(), Functional(), convolution(4), classifier())
    spec, model = build(module)
    assert [half.has_dropout for half in spec.split(model, 2)] == [True, False]
    assert [half.has_dropout for half in spec.split(model, 1)] == [False, True]


def test_frozen_layers_are_neither_changed_nor_counted_nor_sent(tiny):
    module = frozen()
    run = tiny(model=module, cut=3)
    before, after = module.state_dict(), run.model.state_dict()
    for name in before:
        assert torch.equal(before[name], after[name]) == (name[0] == "0" or name == "3.1.bias")
    spec, model = build(module)
    head, tail = (Flat(half) for half in spec.split(model, 3))
    assert head.vector.numel() == 4 * 4 * 9 + 4  # the second convolution's
    assert tail.vector.numel() == 256 * 10


def test_a_vector_of_one_tensor_is_a_copy_without_gradient():
    weight = nn.Parameter(torch.ones(3))
    vector = flatten([weight])
    vector.numpy()[:] = 2
    assert weight.tolist() == [1, 1, 1]


LINEAR = 2 * SIDE**2 * 10
ATTENTION = 2 * (3 * SIDE**3 + 2 * SIDE**3 + SIDE**3)  # projections, two products of 8 x 8 x 8, out


@pytest.mark.parametrize(
    ("stages", "forward", "backward"),
    [  # backward: as much again for inputs, which pixels need not, and for weights
        ([Rows(), nn.Linear(8, 8)], 2 * 8 * 64, 2 * 8 * 64),
        ([Rows(), nn.Conv1d(8, 8, 3, padding=1)], 2 * 8 * 8 * 3 * 8, 2 * 8 * 8 * 3 * 8),
        ([Rows(), nn.Linear(8, 8), Attention()], 1024 + ATTENTION, 1024 + 2 * ATTENTION),
        ([nn.ConvTranspose2d(1, 1, 1)], 2 * 64, 2 * 64),
        ([nn.PReLU()], 0, 0),
    ],
    ids=["linear", "conv1d", "attention", "transposed", "none"],
)
def test_operations_of_all_kinds_of_layers_are_counted(stages, forward, backward):
    spec, model = build(nn.Sequential(*stages, classifier(1)))
    head, tail = spec.split(model, len(stages))
    assert head.forward_flops(5) == 5 * forward
    assert head.flops(5) == 5 * (forward + backward)
    assert tail.forward_flops(3, head.smashed_shape[0]) == 3 * LINEAR
    assert tail.flops(3, head.smashed_shape[0]) == 3 * 3 * LINEAR


def test_frozen_layers_cost_no_gradient_of_weights():
    module = nn.Sequential(convolution(1, 1), convolution(1, 1), classifier(1))
    module[0].requires_grad_(False)
    one = 2 * 9 * 64
    spec, model = build(module)
    head, _ = spec.split(model, 2)
    assert head.flops(1) == 2 * one + one  # only the second one's weights


# Batch norm.


@pytest.mark.parametrize("arguments", [{"affine": False}, {"track_running_stats": False}])
def test_a_batch_norm_keeps_its_settings(arguments):
    theirs = nn.BatchNorm1d(5, **arguments)
    ours = BatchNorm(copy.deepcopy(theirs), keeps_statistics=True)
    batch = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))
    for norm in (theirs, ours):
        norm.train()
    assert torch.equal(ours(batch), theirs(batch))
    untouched = nn.BatchNorm1d(5, **arguments).eval()
    assert torch.equal(ours.eval()(batch), untouched(batch))
    assert ours.state_dict().keys() == theirs.state_dict().keys()


def test_a_model_of_ours_draws_nothing():
    spec = LeNet(image_size=16)
    model = spec.build(image_size=16, channels=1, num_classes=10, seed=0)
    assert not any(half.has_dropout for half in spec.split(model, 1))
