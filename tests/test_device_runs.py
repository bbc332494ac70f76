"""Whole runs on a device that pretends: all that is computed is there, and results are close."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from flwr.app import RecordDict

from fl_split.exchange.records import BEGIN, ROUND, Record
from fl_split.exchange.ushape import TARGETS
from simulations.clients.pool import ClientPool
from simulations.clients.state import ClientState
from simulations.runs import checkpoint
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from strategies.server import threads
from tests.pretend import DEVICE, Pretending, pretence

TINY = {
    "model": "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)",
    "cut": 2, "clients": 4, "fraction": 1.0, "partition": "iid()", "batch_size": 32,
    "local_steps": 2, "rounds": 2, "checkpoint_every": 1, "holdout": 0.2,
}  # fmt: skip


class OneThread:
    """Stands for a pool: modes of torch hold in the thread that sets them, and in no other."""

    def __init__(self, *_, **__):
        pass

    def submit(self, work):
        future = threads.Future()
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)
        return future

    def map(self, work, items):
        return map(work, items)

    def shutdown(self, **_):
        pass


@pytest.fixture
def on_device(simulate, monkeypatch):
    """Run an experiment on the pretending device; return its outcome."""

    def run(**changes):
        with monkeypatch.context() as patch, pretence():
            patch.setattr("simulations.runs.setup.find", lambda name: DEVICE)
            patch.setattr(threads, "ThreadPoolExecutor", OneThread)
            return simulate(**changes)

    return run


RUNS = [
    {"strategy": "parallel"},
    {"strategy": "parallel", "stack": 3},
    {"strategy": "sflv1", "codec": "adc(ratio=0.3)", "stack": 3},
    {"strategy": "sflv2", "codec": "topk(ratio=0.2) | uniform()", "downlink": "uniform()"},
    {"strategy": "parallel(average_heads=False)", "codec": "c3sl(factor=2)", "stack": 2},
    {"strategy": "local"},
    {"strategy": "fedprox"},
    *({"strategy": name} for name in ("scaffold", "fednova", "moon", "feddyn")),
    {"strategy": "centralised"},
    {"strategy": "parallel", "end": 3, "cut": 1, "downlink": "fp16()"},
    {"model": "resnet18(width=4)", "cut": 1},
    {
        "augment": "crop(padding=1) | flip() | mixup()",
        "schedule": "cosine(warmup=0.5)",
        "clip": "norm(limit=0.5)",
        "head_optimizer": "adamw(lr=0.003, no_decay=True)",
        "label_smoothing": 0.1,
        "accumulate": 2,
        "ema": 0.5,
        "freeze": "embeddings",
    },
    {"channel": "erasure(p=0.1, mode='drop')", "down_channel": "awgn(snr_db=20)"},
]


@pytest.mark.parametrize("changes", RUNS, ids=lambda changes: ", ".join(map(str, changes.values())))
def test_a_run_on_a_device_is_close_to_that_on_the_cpu(simulate, on_device, changes):
    wanted = simulate(**{**TINY, **changes})
    found = on_device(**{**TINY, **changes})
    assert not found.clients["dropped"].any()
    for column in ("train_loss", "loss"):
        np.testing.assert_allclose(found.rounds[column], wanted.rounds[column], rtol=5e-3)
    assert found.summary["machine"]["device"] == str(DEVICE)
    assert {type(value) for value in found.model.values()} == {torch.Tensor}


def test_a_state_of_a_client_is_on_the_cpu_and_comes_back_to_the_device(monkeypatch):
    """In the middle of a round, as any other process may go on with it."""
    changes = {**TINY, "cut": 1, "end": 3, "engine": "inline()"}
    monkeypatch.setattr("simulations.runs.setup.find", lambda name: DEVICE)
    with pretence():
        setup = prepare(Experiment.from_dict(changes))
        pool = ClientPool(setup.worker())
        begin = Record(BEGIN, weights=setup.initial_weights(), numbers={ROUND: 1})
        first, second = pool.lend(0), pool.lend(0)
        first.begin(begin)
        first.forward()
        state = RecordDict()
        first.save().write(state)
        second.restore(ClientState.read(state))
        assert second.memory and {*map(type, second.memory.values())} == {Pretending}
        assert torch.equal(second.memory[TARGETS].numbers, first.memory[TARGETS].numbers)
        assert isinstance(second.head.vector, Pretending)
        assert torch.equal(second.head.vector.numbers, first.head.vector.numbers)
        payloads = [one.link.up(one.forward(), one.at) for one in (first, second)]
    assert payloads[0] == payloads[1]


def test_a_run_on_a_device_goes_on_where_it_was_stopped(on_device, resume, monkeypatch):
    """Weights, moments and states of clients cross to the CPU and back, to the bit."""
    changes = {**TINY, "strategy": "parallel(average_heads=False)"}
    whole = on_device(**{**changes, "rounds": 3})

    class Stop(Exception):
        pass

    def stop(row, result):
        if row["round"] == 2:
            raise Stop

    with pytest.raises(Stop):
        on_device(watch=stop, **{**changes, "rounds": 3})
    folder = whole.folder.with_name("run2")
    assert checkpoint.read(folder)[1].rounds == 2
    with monkeypatch.context() as patch, pretence():
        patch.setattr("simulations.runs.setup.find", lambda name: DEVICE)
        patch.setattr(threads, "ThreadPoolExecutor", OneThread)
        resume(replace(whole, folder=folder))
    assert replace(whole, folder=folder).equals(whole)
