"""Real training, which fails if ADC, the gradients or the averaging are wrong."""

import pytest

LEARNS = {
    "clients": 20,
    "rounds": 25,
    "fraction": 0.5,
    "local_steps": 4,
    "batch_size": 32,
    "partition": "dirichlet(alpha=1.0)",
    "model": "vit(hidden_size=32, num_hidden_layers=3, num_attention_heads=2, patch_size=2)",
    "head_optimizer": "adam(lr=0.002)",
    "tail_optimizer": "adam(lr=0.003)",
}


@pytest.mark.slow
def test_split_learning_learns_and_each_half_matters(simulate):
    learnt = simulate(**LEARNS).summary["final_accuracy"]
    adc = simulate(**LEARNS, codec="adc(ratio=0.25)").summary["final_accuracy"]
    frozen = {**LEARNS, "head_optimizer": "sgd(lr=0.0)"}
    no_head = simulate(**frozen).summary["final_accuracy"]
    frozen = {**LEARNS, "tail_optimizer": "sgd(lr=0.0)"}
    no_tail = simulate(**frozen).summary["final_accuracy"]
    print(f"{learnt=} {adc=} {no_head=} {no_tail=}")
    assert learnt > 0.8
    assert adc > 0.6
    assert learnt > no_head + 0.1 and adc > no_head + 0.1
    assert learnt > no_tail + 0.1 and adc > no_tail + 0.1


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["sflv1", "sflv2", "sequential", "centralised"])
def test_every_baseline_learns(simulate, strategy):
    changes = {**LEARNS, "rounds": 15}
    outcome = simulate(**changes, strategy=strategy)
    assert outcome.rounds["accuracy"].iloc[-1] > 0.45
    assert outcome.rounds["loss"].iloc[-1] < outcome.rounds["loss"].iloc[0]
