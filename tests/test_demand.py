"""What a step takes is known before it is tried, and refused if it cannot fit."""

import pytest
import torch

from fl_split.activations import activation_bytes, saved
from fl_split.exchange.whole import joined
from fl_split.models.costs import whole_activation_bytes
from fl_split.models.kept import kept_bytes
from fl_split.models.lenet import LeNet
from fl_split.models.resnet import ResNet18
from fl_split.models.vit import ViT
from simulations.runs import demand
from simulations.runs.demand import check_demand
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare

LARGE = {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 3}


def halves(spec, cut=1, end=0, size=32):
    model = spec.build(image_size=size, channels=3, num_classes=5, seed=0).train()
    return spec.split(model, cut, end)


@pytest.mark.parametrize(
    "spec",
    [
        ViT(**LARGE, patch_size=2),
        ViT(**LARGE, patch_size=8),
        ViT(**LARGE, patch_size=4, hidden_dropout_prob=0.1),
        ViT(**LARGE, patch_size=2, attention_probs_dropout_prob=0.1),
        LeNet(),
        ResNet18(width=4),
    ],
)
@pytest.mark.parametrize(("cut", "end"), [(1, 0), (2, 3)])
def test_the_estimate_is_what_autograd_keeps(spec, cut, end):
    head, tail = halves(spec, cut, end)
    with saved() as sizes:
        logits = joined(head, tail, torch.randn(3, *head.image_shape))
    truth = activation_bytes(sizes, [*head.parameters(), *tail.parameters()])
    assert logits.requires_grad
    assert truth / 2 <= whole_activation_bytes(head, tail, 3) <= 2 * truth


def test_attention_that_is_held_counts_with_the_square_of_tokens():
    """Per head, with dropout: at least the rows of attention, n x n floats."""
    head, _ = halves(ViT(**LARGE, patch_size=4, attention_probs_dropout_prob=0.1))
    small, large = (kept_bytes(head.blocks, n, 16) for n in (10_000, 20_000))
    assert small >= 4 * 2 * 10_000**2
    assert large / small == pytest.approx(4, rel=0.05)
    fused, _ = halves(ViT(**LARGE, patch_size=4))
    small, large = (kept_bytes(fused.blocks, n, 16) for n in (10_000, 20_000))
    assert large == 2 * small


def test_what_does_not_fit_is_refused_with_what_to_set():
    head, tail = halves(ViT(**LARGE, patch_size=2))
    needed = whole_activation_bytes(head, tail, 16)
    assert check_demand(head, tail, 16, needed) == []
    with pytest.raises(ValueError, match=r"32 x 32 pixels are 257 tokens each; a step") as error:
        check_demand(head, tail, 16, needed - 1)
    message = str(error.value)
    assert all(key in message for key in ("image_size=", "patch_size=", "batch_size", "FLOP"))


def test_very_many_tokens_are_said(monkeypatch):
    head, tail = halves(ViT(**LARGE, patch_size=2))
    monkeypatch.setattr(demand, "MANY_TOKENS", 256)
    (note,) = check_demand(head, tail, 16, 2**60)
    assert "257 tokens" in note and "take less" in note


def test_photos_are_refused_before_any_is_decoded(tmp_path, monkeypatch):
    from PIL import Image

    for name in ("ant", "bee"):
        (tmp_path / name).mkdir()
        for number in range(3):
            Image.new("RGB", (400, 300)).save(tmp_path / name / f"{number}.png")
    monkeypatch.setattr("simulations.runs.halves.available_bytes", lambda: 2**32)
    monkeypatch.setattr("simulations.runs.setup.images", lambda *_: pytest.fail("decoded"))
    values = {"dataset": f"local(path={str(tmp_path)!r})", "partition": "iid", "clients": 2}
    with pytest.raises(ValueError, match=r"^model: images of 400 x 400 pixels are 40,001 tokens"):
        prepare(Experiment.from_dict({**values, "batch_size": 16}))


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 "), (999, "999 "), (1234, "1.23 k"), (5.6e11, "560 G")]
)
def test_numbers_are_short(number, text):
    assert demand._short(number) == text
