"""Tensors stay on the device they are given: found in the source, and by running without a GPU.

Three ways. The source names the device of each tensor that is made. Fake tensors of CUDA have no
numbers, but torch itself refuses to mix them with those of the CPU. Pretending tensors have
numbers, so that what asks for them (how many marks, which classes) runs too: see pretend.py.
"""

import ast
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fl_split import accelerators
from fl_split.channels import CHANNELS
from fl_split.codecs import CODECS, Smashed, parse_codec, parse_downlink
from fl_split.codecs.c3sl import key_spectra
from fl_split.exchange.link import Link
from fl_split.exchange.split import Split, pair
from fl_split.exchange.stacked import StackedHead
from fl_split.flat import Flat
from fl_split.models import MODELS
from fl_split.models.cut import insert
from fl_split.models.vit import ViT
from fl_split.optimizers import OPTIMIZERS
from fl_split.payload import Payload
from fl_split.recipe.descent import Descent
from fl_split.recipe.loss import CrossEntropy
from fl_split.seeds import StepId
from fl_split.spec_errors import SpecError
from fl_split.specs import parse
from simulations.data.samples import Samples
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from tests.pretend import DEVICE, Apart, away, home, pretence

ROOT = Path(__file__).parents[1]
AT = StepId(3, 1, 2, 0)

MAKERS = {
    "arange", "as_tensor", "empty", "eye", "frombuffer", "from_numpy", "full", "linspace",
    "logspace", "normal", "ones", "rand", "randint", "randn", "randperm", "scalar_tensor",
    "tensor", "tril_indices", "triu_indices", "zeros",
}  # fmt: skip
"""What makes a tensor out of no other."""

LEAVES = {"to", "item", "tolist"}
"""What takes a tensor from where it was made to where it is needed, or to Python."""

HOST = {
    "fl_split/payload.py",  # bytes
    "fl_split/seeds.py",  # states of generators
    "fl_split/flat.py",  # weights as they are sent
    "fl_split/exchange/records.py",
    "fl_split/exchange/aligned.py",  # weights as they are sent
    "fl_split/exchange/whole.py",
    "fl_split/channels/channel.py",  # bytes on their way
    "fl_split/channels/erasure.py",
    "fl_split/checks/codecs.py",  # laws, on the CPU
    "fl_split/checks/models.py",
    "fl_split/exchange/local_round.py",  # vectors as they are sent
    "fl_split/exchange/stand_in.py",
    "strategies/feddyn.py",
    "strategies/fednova.py",
    "strategies/fsl_sage.py",
    "strategies/ampere.py",
    "strategies/server/kept_rows.py",
    "strategies/gas.py",
    "strategies/scaffold.py",
    "strategies/server/round.py",
    "strategies/server/aggregation.py",  # averages of weights, which Flower makes
    "strategies/server/flower_messages.py",
    "strategies/server/loop.py",
    "strategies/server/participants.py",
    "strategies/server/private_models.py",
    "strategies/server/stand_ins.py",
    "strategies/server/tail.py",
}
"""Files that work on the CPU: with bytes, with weights as they are sent, with who is chosen."""


def faults(source: str) -> list[int]:
    """Return lines that make a tensor on no device that is named, or take one for an array."""
    tree = ast.parse(source)
    parents = {child: node for node in ast.walk(tree) for child in ast.iter_child_nodes(node)}

    def leaves(node):
        """Tell whether what a call makes is moved in the same expression."""
        while True:
            node, before = parents[node], node
            if isinstance(node, ast.Attribute) and node.attr in LEAVES:
                return True
            is_chain = isinstance(node, ast.Attribute | ast.Subscript) and node.value is before
            if not is_chain and not (isinstance(node, ast.Call) and node.func is before):
                return False

    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        if owner == "torch" and name in MAKERS:
            names = {one.arg for one in node.keywords}
            if "device" not in names and not leaves(node):
                found.append(node.lineno)
        elif name == "numpy" and not owner.endswith(".cpu()"):
            found.append(node.lineno)
    return sorted(found)


@pytest.mark.parametrize(
    ("line", "is_fault"),
    [
        ("x = torch.zeros(3)", True),
        ("x = torch.zeros(3, device=y.device)", False),
        ("x = torch.rand(3, generator=g)", True),
        ("x = torch.rand(3, generator=g).to(y.device)", False),
        ("x = (1 - torch.rand(3, generator=g)).to(y.device)", True),  # the rule is strict
        ("x = torch.from_numpy(a).view(3).to(y.device)", False),
        ("x = f(torch.arange(3)).to(y.device)", True),
        ("i = torch.randperm(3, generator=g)[:2].tolist()", False),
        ("x = y.numpy()", True),
        ("x = y.detach().cpu().numpy()", False),
        ("x = torch.zeros_like(y)", False),
    ],
)
def test_the_rule_on_sources_finds_what_it_should(line, is_fault):
    assert bool(faults(line)) == is_fault


def test_every_tensor_is_made_on_a_device_that_is_named():
    found = {}
    for package in ("fl_split", "strategies"):
        for file in (ROOT / package).rglob("*.py"):
            name = str(file.relative_to(ROOT))
            if lines := faults(file.read_text()):
                found[name] = lines
    assert found.keys() <= HOST, {name: found[name] for name in found.keys() - HOST}
    assert HOST - {"fl_split/flat.py"} <= found.keys(), "a file that needs no exception"


SPECS = {
    "adc": ["adc(ratio=0.3)", "adc(ratio=0.3, weighted_loss=True)"],
    "c3sl": ["c3sl(factor=2)", "c3sl(factor=4, keys='unitary')"],
    "randtopk": ["randtopk(ratio=0.2)"],
    "rans": ["rans()", "topk(ratio=0.2) | rans()", "uniform() | rans(layout='sparse')"],
    "slicer": ["slicer()", "slicer(asymmetry=0.4, guard='int')"],
    "splitfc": ["splitfc()", "splitfc(keep=1.0, bits=1.0)"],
    "topk": ["topk(ratio=0.2)", "topk(ratio=0.02)"],
    "uniform": ["uniform()", "uniform(per='channel', rounding='stochastic')"],
    "zstd": ["zstd()", "topk(ratio=0.2) | uniform() | zstd()"],
}
ALL = [spec for name in CODECS for spec in SPECS.get(name, [f"{name}()"])]

FAKE = [
    "bf16()", "bottlenet()", "fp16()", "identity()", "uniform()",
    "uniform(per='channel', rounding='stochastic')",
]  # fmt: skip
"""Codecs that ask for no numbers. All others look at some (how many clusters are empty, where
marks are, whether columns differ, what an entropy coder counts), which fake tensors lack; and
fake tensors of CUDA are neither sorted, transformed nor cut by a torch without CUDA (attended,
c3sl, jscc)."""


def batch(rows=9, tokens=5, width=16, classes=4):
    """Smashed data with gradient, their attention and labels, on the CPU."""
    draw = torch.Generator().manual_seed(0)
    values = torch.randn(rows, tokens, width, generator=draw)
    values[2] = values[1]  # ties
    attention = torch.rand(rows, tokens, generator=draw).softmax(dim=1)
    return values, attention, torch.arange(rows) % classes


def smashed(values, attention, labels):
    return Smashed(values.requires_grad_(), lambda: attention, labels, 4)


def tensors(payload):
    return {**payload.carried, **payload.side}


@pytest.fixture(autouse=True)
def _keys_are_drawn_anew():
    """Keys made of fake tensors, or pretending ones, are none for others."""
    key_spectra.cache_clear()
    yield
    key_spectra.cache_clear()


@pytest.mark.parametrize("spec", FAKE)
def test_codecs_run_on_fake_tensors_of_cuda(spec):
    """There torch itself raises FakeTensorDeviceMismatchError where devices differ."""
    codec = parse_codec(spec)
    with FakeTensorMode() as mode:
        values, attention, labels = (mode.from_tensor(one).to("cuda:0") for one in batch())
        payload = codec.encode(smashed(values, attention, labels), AT.generator("codec"))
        found = codec.decode(payload)
        assert found.tokens.device == torch.device("cuda:0")
        with torch.no_grad():
            packed = codec.pack(payload, AT.generator("pack"))
            back = codec.unpack(packed)
        for one in (payload, packed, back):
            assert {t.device for t in tensors(one).values()} == {torch.device("cuda:0")}


def test_fake_tensors_of_two_devices_are_refused():
    with FakeTensorMode(), pytest.raises(RuntimeError, match="devices"):
        torch.zeros(3, device="cuda:0") + torch.zeros(3, device="cpu")


def exchanged(codec, data):
    """Encode, pack, unpack and decode; return all that came out, and the gradient of the sum."""
    with torch.no_grad():
        data = smashed(*(one.clone() for one in data))
    payload = codec.encode(data, AT.generator("codec"))
    with torch.no_grad():
        packed = codec.pack(payload, AT.generator("pack"))
        back = codec.unpack(packed)
    leaves = {k: v.detach().requires_grad_() for k, v in back.carried.items()}
    received = codec.decode(Payload(leaves, back.side))
    received.tokens.square().sum().backward()
    cut = {name: leaf.grad for name, leaf in leaves.items()}
    values, weights = pair(payload, Payload(cut))
    (gradient,) = torch.autograd.grad(values, [data.tokens], weights, materialize_grads=True)
    more = {} if received.weights is None else {"weights": received.weights}
    parts = {f"packed {k}": v for k, v in tensors(packed).items()}
    results = {"tokens": received.tokens, "targets": received.targets, "gradient": gradient}
    return {**parts, **results, **more}


@pytest.mark.parametrize("spec", ALL)
def test_codecs_give_on_another_device_what_they_give_on_the_cpu(spec):
    """Same device in, same device out, and but for roundings the same numbers."""
    codec = parse_codec(spec)
    values, *rest = batch()
    data = [values.sign() if spec == "semantic()" else values, *rest]  # as its encoder: few values
    wanted = exchanged(codec, data)
    key_spectra.cache_clear()
    with pretence():
        found = exchanged(codec, [away(one) for one in data])
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        close = home(found[name].detach())
        assert close.dtype == value.dtype and close.shape == value.shape, name
        torch.testing.assert_close(close, value.detach(), rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("spec", ["topk(ratio=0.2, error_feedback=True)", "randtopk() | zstd()"])
def test_downlinks_stay_on_the_device(spec):
    codec, (gradient, *_) = parse_downlink(spec), batch()
    wanted = codec.unpack(codec.pack(Payload({"g": gradient}), AT.generator("downlink")))
    with pretence():
        packed = codec.pack(Payload({"g": away(gradient)}), AT.generator("downlink"))
        found = home(codec.unpack(packed).carried["g"])
    assert torch.equal(found, wanted.carried["g"])


def test_a_codec_that_forgets_the_device_is_found(monkeypatch):
    """What the tests above stand for: draws that stay on the CPU, and clusters made there."""
    codec, data = parse_codec("uniform(rounding='stochastic')"), batch()
    monkeypatch.setattr(torch.Tensor, "to", lambda self, *args, **more: self)
    with pretence(), pytest.raises(Apart):
        exchanged(codec, [away(one) for one in data])


@pytest.mark.parametrize("name", [name for name in CHANNELS if name in {"awgn", "rayleigh"}])
def test_noise_is_drawn_on_the_cpu_and_added_on_the_device(name):
    rows, *_ = batch()
    channel, draw = CHANNELS[name](), AT.generator
    wanted = channel.over_the_air(rows.flatten(1), draw("channel"))
    with pretence():
        found = channel.over_the_air(away(rows).flatten(1), draw("channel"))
    torch.testing.assert_close(tuple(map(home, found)), wanted)


class Reader(torch.nn.Module):
    """Stands for a tail: a layer whose weight was put on the device by hand."""

    serves_alone = has_dropout = False
    num_tokens, num_classes, width = None, 4, 16

    def __init__(self, weight):
        super().__init__()
        self.weight, self.beside = weight, torch.nn.ModuleList()

    def forward(self, tokens):
        return tokens.mean(dim=1) @ self.weight


class Vector:
    """Stands for the flat weights of a tail."""

    statistics = None

    def __init__(self, module):
        self.module = module

    def differentiate(self, outputs, gradients=None, inputs=()):
        assert gradients is None
        found = torch.autograd.grad(outputs, [self.module.weight, *inputs])
        return found[0], list(found[1:])


def served(codec, payloads, weight, device):
    """Receive bytes of two clients, run them through a tail together, pack cut gradients."""
    link = Link(codec, parse_downlink("uniform(bits=8)"), device=device)
    tail = Vector(Reader(weight.requires_grad_()))
    arrivals = [link.arrive(data, AT, tail.module) for data in payloads]
    losses, cuts, gradient = Split().cut_gradients(tail, arrivals, [0.25, 0.75], AT)
    down = [link.down(cut, replace(AT, client=k)) for k, cut in enumerate(cuts)]
    again = [link.read(data, AT).carried for data in down]
    return losses, gradient, [value for found in again for value in found.values()]


@pytest.mark.parametrize("spec", ["identity()", "adc(ratio=0.3, weighted_loss=True)", "topk()"])
def test_the_server_serves_on_the_device(spec):
    """Bytes come from the CPU and go there; all between is on the device of the link."""
    codec = parse_codec(spec)
    up = Link(codec, parse_downlink("identity()"))
    payloads = [
        up.up(codec.encode(smashed(*batch(rows)), AT.generator("codec")), AT) for rows in (9, 7)
    ]
    weight = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    losses, gradient, cuts = served(codec, payloads, weight.clone(), torch.device("cpu"))
    with pretence():
        found = served(codec, payloads, away(weight), DEVICE)
    assert found[0] == pytest.approx(losses, rel=1e-6)
    torch.testing.assert_close(home(found[1]), gradient)
    for one, wanted in zip(found[2], cuts, strict=True):
        torch.testing.assert_close(home(one), wanted)


def test_a_server_that_leaves_its_link_on_the_cpu_is_found():
    codec = parse_codec("identity()")
    data = Link(codec, codec).up(codec.encode(smashed(*batch()), AT.generator("codec")), AT)
    with pretence(), pytest.raises(Apart):
        served(codec, [data, data], away(torch.randn(16, 4)), torch.device("cpu"))


def test_losses_of_several_clients_are_computed_on_the_device():
    with FakeTensorMode() as mode, pytest.raises(RuntimeError, match="devices"):
        logits = mode.from_tensor(torch.randn(16, 4)).to("cuda:0")
        codec = parse_codec("identity()")
        parts = [codec.decode(codec.encode(smashed(*batch(8)), None)) for _ in range(2)]
        CrossEntropy().joint(logits, parts, [0.5, 0.5])


@pytest.mark.parametrize("spec", ["identity()", "bottlenet()", "jscc()", "semantic()"])
def test_a_head_and_a_tail_run_both_ways_on_another_device(spec):
    model = ViT(hidden_size=16, num_attention_heads=2, patch_size=4, num_hidden_layers=2)
    head, tail = model.split(model.build(image_size=8, channels=1, num_classes=4, seed=0), 1)
    insert(head, tail, parse_codec(spec), 0)
    head, tail = head.to("meta"), tail.to("meta")
    logits = tail(head(torch.zeros(3, 1, 8, 8, device="meta"))[0])
    logits.sum().backward()
    grads = [one.grad.device for half in (head, tail) for one in half.parameters()]
    assert {str(one) for one in grads} == {"meta"}


class Gpus:
    """A CUDA of so many GPUs."""

    def __init__(self, monkeypatch, count):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("name", "gpus", "wanted"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_device_is_found_by_its_name(monkeypatch, name, gpus, wanted):
    Gpus(monkeypatch, gpus)
    assert accelerators.find(name) == torch.device(wanted)


@pytest.mark.parametrize(
    ("name", "gpus", "told"),
    [
        ("cuda", 0, "'cuda' needs a GPU that torch can use, and there is none"),
        ("cuda:3", 2, "no GPU 'cuda:3'; this machine has 'cuda:0' to 'cuda:1'"),
        ("cuda:1", 1, "no GPU 'cuda:1'; this machine has 'cuda:0'"),
        ("mps", 0, "no GPU of Apple ('mps') that torch can use"),
    ],
)
def test_a_device_that_is_not_there_is_told_at_the_door(monkeypatch, tmp_path, name, gpus, told):
    """Before data are loaded, in one line that names the key, and nothing is written."""
    Gpus(monkeypatch, gpus)
    folder = tmp_path / "run"
    with pytest.raises(ValueError) as error:
        prepare(Experiment.from_dict({"device": name, "out": str(folder)}))
    message = str(error.value)
    assert message.startswith(f"device: {told}") and "\n" not in message
    assert not folder.exists()


@pytest.mark.parametrize(("version", "fits"), [((7, 5), False), ((8, 0), True), ((9, 0), True)])
def test_bf16_is_refused_by_a_gpu_that_has_none(monkeypatch, version, fits):
    """Ampere, 8.0, was the first to have it."""
    Gpus(monkeypatch, 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: version)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    if fits:
        accelerators.check_bf16(torch.device("cuda:0"))
        return
    told = "precision: bf16 needs a GPU of compute capability 8.0 or more; Tesla T4 has 7.5"
    with pytest.raises(ValueError, match=told):
        prepare(Experiment.from_dict({"device": "cuda", "precision": "bf16"}))


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cuda:-1", "", "CUDA"])
def test_what_is_no_device_is_told_with_the_names_of_devices(name):
    with pytest.raises(SpecError, match="device must be one of auto, cpu, cuda"):
        Experiment.from_dict({"device": name})


def test_determinism_is_asked_of_cuda_in_the_block_alone(monkeypatch):
    """No GPU is needed to set the flags; all of them are what they were afterwards."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    assert cudnn.conv.fp32_precision == "tf32"  # torch's default
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    monkeypatch.setattr(cudnn, "benchmark", True)

    def flags():
        return (
            torch.are_deterministic_algorithms_enabled(),
            matmul.fp32_precision,
            cudnn.conv.fp32_precision,
            cudnn.benchmark,
            os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        )

    before = flags()
    with accelerators.computing(torch.device("cpu"), True):
        assert flags() == before
    with accelerators.computing(torch.device("cuda"), False):  # fp32 is fp32 in any case
        assert flags() == (before[0], "ieee", "ieee", *before[3:])
    with pytest.raises(KeyError), accelerators.computing(torch.device("cuda"), True):
        assert flags() == (True, "ieee", "ieee", False, ":4096:8")
        raise KeyError
    assert flags() == before


def test_a_worker_computes_on_its_device_from_the_first_batch_to_the_last_state():
    """Of the head on a device without numbers: all that it is given lies there too."""
    samples = Samples(
        np.zeros((8, 1, 8, 8), np.uint8), np.arange(8) % 4, [np.arange(8)], 4, [0.5], [0.5]
    )
    pixels, labels = samples.batch(np.arange(3), torch.device("meta"))
    assert pixels.dtype == torch.float32 and pixels.shape == (3, 1, 8, 8)
    assert {str(pixels.device), str(labels.device)} == {"meta"}


def test_bytes_cast_on_the_device_are_those_cast_by_numpy():
    draw = np.random.default_rng(0)
    images = draw.integers(0, 256, (9, 3, 4, 4), np.uint8)
    samples = Samples(images, np.arange(9), [], 9, [0.5, 0.4, 0.3], [0.2, 0.3, 0.25])
    wanted, _ = samples.batch(slice(2, 7))
    with pretence():
        found, labels = samples.batch(slice(2, 7), DEVICE)
    assert torch.equal(home(found), wanted)
    assert home(labels).tolist() == [2, 3, 4, 5, 6]


@pytest.mark.parametrize("spec", ["adam(lr=0.01)", "sgd(momentum=0.9)"])
def test_moments_come_back_to_the_device_of_their_weights(spec):
    """A client's state is on the CPU: a count of steps stays there, all else moves."""
    layer = Flat(torch.nn.Linear(3, 2))
    descent = Descent(layer, parse(spec, OPTIMIZERS))
    descent.step(torch.ones_like(layer.vector))
    there = Flat(torch.nn.Linear(3, 2).to("meta"))
    again = Descent(there, parse(spec, OPTIMIZERS))
    again.restore(descent.state())
    again.step(torch.ones_like(there.vector))
    devices = {name: str(value.device) for name, value in again.state().items()}
    assert devices == {name: "cpu" if name == "step" else "meta" for name in devices}
    assert len(devices) == len(descent.state())


def test_weights_that_are_loaded_or_sent_cross_to_the_device_and_back():
    flat, other = Flat(torch.nn.Linear(3, 2)), Flat(torch.nn.Linear(3, 2).to("meta"))
    other.load(flat.numpy())
    other.load(flat.vector.detach())
    assert str(other.vector.device) == "meta"
    assert all(str(one.device) == "meta" for one in other.module.parameters())
    with pytest.raises(ValueError, match="must be a vector of 8 numbers"):
        other.load(np.zeros(7, np.float32))


SCRATCH = {
    "vit": ("vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)", 1, 2),
    "resnet18": ("resnet18(width=4)", 1, 2),
    "lenet": ("lenet()", 1, 2),
}


@pytest.mark.parametrize("end", [False, True], ids=["one cut", "two cuts"])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_models_run_both_ways_on_another_device(name, end):
    """All parts of each model of the table; one that is loaded from files is one of these."""
    if name not in SCRATCH:
        assert name == "pretrained"
        pytest.skip("its modules are those of vit and resnet18")
    text, cut, last = SCRATCH[name]
    spec = parse(text, MODELS)
    model = spec.build(image_size=32, channels=3, num_classes=4, seed=0)
    head, tail = spec.split(model, cut, last if end else 0)
    parts = [head.to("meta"), tail.to("meta")]
    features = head(torch.zeros(3, *head.image_shape, device="meta"))[0]
    logits = tail(features)
    if end:
        logits = head.end(logits)
    assert logits.shape == (3, 4)
    logits.sum().backward()
    weights = [one for part in parts for one in part.parameters()]
    assert weights and {str(one.grad.device) for one in weights} == {"meta"}


def test_stacked_heads_run_both_ways_on_another_device():
    """With the formulas of a GPU: those of the CPU loop over clients."""
    spec = parse(SCRATCH["vit"][0], MODELS)
    head, _ = spec.split(spec.build(image_size=8, channels=1, num_classes=4, seed=0), 2)
    flat = Flat(head.to("meta"))
    stacked = StackedHead(head, size=4)
    pixels = torch.zeros(6, 1, 8, 8, device="meta")
    found = stacked.run([flat.vector.detach()] * 3, pixels)
    gradient = found.differentiate(torch.zeros_like(found.tokens))
    assert gradient.shape == (3, len(flat.vector)) and str(gradient.device) == "meta"
