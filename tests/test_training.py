"""Real training, which fails if ADC, the gradients or the averaging are wrong.

The model is so narrow that an untrained head loses what the digits are, and so shallow
behind the cut that an untrained tail cannot tell them apart.
"""

import pytest

LEARNS = {
    "clients": 4,
    "rounds": 40,
    "local_steps": 4,
    "batch_size": 32,
    "partition": "dirichlet(alpha=1.0)",
    "model": "vit(hidden_size=8, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 2,
    "head_optimizer": "adam(lr=0.005)",
    "tail_optimizer": "adam(lr=0.01)",
}
TOGETHER = {
    "head_optimizer": "adam(lr=0.01)",
    "tail_optimizer": "adam(lr=0.02)",
}
"""For one tail step an exchange, whatever the number of clients."""

FROZEN = "sgd(lr=0.0)"

pytestmark = pytest.mark.slow


def final(simulate, **changes):
    return simulate(**{**LEARNS, **changes}).summary["final_accuracy"]


def test_uncompressed_training_beats_an_untrained_head_and_an_untrained_tail(simulate):
    learnt = final(simulate, **TOGETHER)
    assert learnt > 0.8
    assert learnt > final(simulate, **{**TOGETHER, "head_optimizer": FROZEN}) + 0.1
    assert learnt > final(simulate, **{**TOGETHER, "tail_optimizer": FROZEN}) + 0.1


def test_training_through_adc_beats_an_untrained_head_and_an_untrained_tail(simulate):
    adc = {**TOGETHER, "codec": "adc(ratio=0.25)"}
    learnt = final(simulate, **adc)
    assert learnt > 0.4  # chance is 0.1; kinds of CPU differ by some points
    assert learnt > final(simulate, **{**adc, "head_optimizer": FROZEN}) + 0.2
    assert learnt > final(simulate, **{**adc, "tail_optimizer": FROZEN}) + 0.05


@pytest.mark.parametrize("strategy", ["sflv1", "sflv2"])
def test_every_baseline_learns(simulate, strategy):
    assert final(simulate, strategy=strategy) > 0.55
