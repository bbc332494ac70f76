"""Runs in which not all tokens go on: their bytes by hand, and the laws that every run keeps."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

import fl_split as fs
from fl_split.spec_errors import SpecError
from simulations.runs.experiment import Experiment
from simulations.runs.setup import prepare
from simulations.studies.cost import Estimator
from strategies import STRATEGIES

SMALL = {"clients": 3, "rounds": 2, "local_steps": 2, "batch_size": 8, "cut": 2}
MODEL = "vit(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=2)"
"""Of an image of digits 16 patches."""

GATED = ["dual_gate(after=1)", "residual_gate()"]


def prepared(**changes):
    return prepare(Experiment.from_dict({"model": MODEL, "engine": "inline()", **SMALL, **changes}))


@pytest.mark.parametrize("name", ["norm", "cls_attention", "random"])
def test_bytes_fall_by_the_tokens_that_stay_and_what_they_are_compared_with_does_not(
    reference, simulate, name
):
    whole = reference(**SMALL, model=MODEL).rounds
    found = simulate(**SMALL, model=MODEL, tokens=f"{name}(rate=0.3)").rounds
    saved = whole.samples * 4 * 16 * (16 - 5)  # ceil(4.8) patches of 16 numbers in fp32
    assert (whole.payload_bytes_up - found.payload_bytes_up).tolist() == saved.tolist()
    assert (whole.payload_bytes_down - found.payload_bytes_down).tolist() == saved.tolist()
    assert found.smashed_bytes.tolist() == whole.smashed_bytes.tolist()
    assert found.head_bytes_up.tolist() == whole.head_bytes_up.tolist()
    assert (found.server_flops < whole.server_flops).all()
    choosing = 2 * (2 * 16 * 16 + 2 * 17 * 16) if name == "cls_attention" else 0
    more = found.client_flops - whole.client_flops
    assert more.tolist() == (whole.samples * choosing).tolist()


def test_gates_travel_with_the_head(reference, simulate):
    whole = reference(**SMALL, model=MODEL).rounds
    found = simulate(**SMALL, model=MODEL, tokens="dual_gate(after=1)").rounds
    more = 3 * 4 * (2 * 16 + 2 * 2 * 17)  # of three clients: two budget tokens, two gates
    assert (found.head_bytes_up - whole.head_bytes_up).tolist() == [more, more]


@pytest.mark.parametrize("strategy", sorted({*STRATEGIES} - {"ampere", "cse_fsl", "fsl_sage"}))
def test_every_strategy_trains_and_tests_with_gates(simulate, strategy):
    changes = {**SMALL, "rounds": 1, "model": MODEL, "strategy": strategy}
    if strategy == "gas":
        with pytest.raises(ValueError, match="tokens must be as many each time"):
            simulate(**changes, tokens=GATED[0])
        return
    found = simulate(**changes, tokens=GATED[0])
    assert found.summary["status"] == "complete"
    assert found.rounds.loss.notna().all() and found.rounds.train_loss.notna().all()


@pytest.mark.parametrize(
    ("strategy", "tokens"), [("parallel", "random(rate=0.3)"), ("fedavg", GATED[0])]
)
def test_ray_equals_inline(reference, on_ray, strategy, tokens):
    changes = {**SMALL, "model": MODEL, "tokens": tokens, "strategy": strategy}
    assert on_ray(**changes).equals(reference(**changes))


@pytest.mark.parametrize(
    ("end", "tokens"), [(0, "random(rate=0.3)"), (2, "residual_gate(penalty=0.1)")]
)
def test_a_client_through_its_state_repeats_its_forward_with_the_same_bits(
    reference, through_state, tokens, end
):
    changes = {**SMALL, "cut": 1, "end": end, "model": MODEL, "tokens": tokens}
    assert through_state(**changes).equals(reference(**changes))


class Stop(Exception):
    pass


@pytest.mark.parametrize("strategy", ["sflv1", "local"])
def test_resumed_equals_never_stopped(reference, simulate, resume, strategy, tmp_path):
    changes = {**SMALL, "model": MODEL, "tokens": GATED[0], "strategy": strategy}
    changes["checkpoint_every"] = 1

    def watch(row, result):
        if row["round"] == 1:
            raise Stop

    with pytest.raises(Stop):
        simulate(watch=watch, **changes)
    (folder,) = tmp_path.glob("run*")
    whole = reference(**changes)
    half = type(whole)(folder)
    resume(half)
    assert half.equals(whole)
    gates = [load_file(one.folder / "codec.safetensors") for one in (half, whole)]
    assert all(torch.equal(gates[0][key], gates[1][key]) for key in gates[1])


def test_a_codec_that_some_numbers_of_tokens_do_not_fit_is_refused_before_the_run():
    """Groups of fedlite must divide vectors: 17 fits, of 2 to 16 tokens only every 17th would."""
    codec = "fedlite(length=16, groups=17, centroids=2)"
    prepared(codec=codec)
    prepared(codec=codec, tokens="norm(rate=1.0)")
    for tokens in ("dual_gate()", "norm(rate=0.5)"):
        with pytest.raises(ValueError, match=r"codec: .*groups"):
            prepared(codec=codec, tokens=tokens)


@pytest.mark.parametrize("tokens", ["cls_attention(rate=0.3)", *GATED])
def test_a_saved_model_is_the_one_that_was_tested(simulate, tokens):
    """The model of transformers has its own weights alone; gates are beside the codec's."""
    found = simulate(**SMALL, model=MODEL, tokens=tokens, codec="bottlenet(ratio=0.5)")
    assert not [name for name in found.model if "selector" in name]
    names = {name.partition(".")[0] for name in load_file(found.folder / "codec.safetensors")}
    assert names == {"encoder", "decoder", *(["selector"] if "gate" in tokens else [])}
    run = fs.load(found.folder)
    setup = prepare(run.experiment)
    pixels, labels = setup.test.batch(range(len(setup.test.labels)))
    with torch.no_grad():
        right = (run.model(pixels).argmax(1) == labels).float().mean()
    assert float(right) == pytest.approx(run.accuracy, abs=1e-6)


def test_both_tokens_that_a_deit_reads_are_kept(tmp_path, simulate):
    config = DeiTConfig(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=64,
        image_size=8, patch_size=4, num_channels=1, num_labels=10,
    )  # fmt: skip
    DeiTForImageClassificationWithTeacher(config).save_pretrained(tmp_path / "deit")
    model = f"pretrained(path={str(tmp_path / 'deit')!r})"
    head = prepared(model=model, tokens="norm(rate=0.25)").head
    assert head.num_read == 2 and head(torch.randn(3, 1, 8, 8))[0].shape == (3, 2 + 1, 16)
    found = simulate(**SMALL, model=model, tokens="dual_gate()", precision="bf16")
    assert found.summary["status"] == "complete"


def test_adapters_train_beside_gates(tmp_path, simulate):
    pytest.importorskip("peft")
    from fl_split.models.vit import ViT

    spec = ViT(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, patch_size=4)
    module = spec.build(image_size=8, channels=1, num_classes=10, seed=0)
    module.save_pretrained(tmp_path / "vit")
    model = f"pretrained(path={str(tmp_path / 'vit')!r}, lora=2)"
    for tokens in ("cls_attention(after=1)", "residual_gate()"):
        found = simulate(**SMALL, model=model, tokens=tokens)
        assert found.summary["status"] == "complete"
    setup = prepared(model=model, tokens="residual_gate()")
    trained = [name for name, p in setup.head.named_parameters() if p.requires_grad]
    assert {"selector.token", "selector.gates.0.score.weight"} < {*trained}
    assert all("selector" in name or "lora" in name for name in trained)


def test_frozen_stages_stay_and_gates_learn(simulate):
    changes = {**SMALL, "rounds": 1, "model": MODEL}
    found = simulate(**changes, tokens=GATED[1], freeze="embeddings, block1")
    assert found.summary["status"] == "complete"


def test_an_estimate_has_the_real_counts(simulate):
    whole, less = (
        Estimator()(prepared(tokens=tokens)) for tokens in ("none()", "norm(rate=0.25, after=1)")
    )
    found = simulate(**SMALL, model=MODEL, tokens="norm(rate=0.25, after=1)").summary
    assert less.payload_bytes == found["payload_bytes_up"] + found["payload_bytes_down"]
    assert less.client_flops == found["client_flops"] < whole.client_flops
    drawn = Estimator()(prepared(tokens="dual_gate()"))
    assert less.payload_bytes < drawn.payload_bytes < whole.payload_bytes


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"tokens": "norm(rate=0.0)"}, "rate must be greater than 0"),
        ({"tokens": "dual_gate(rate=1.5)"}, "rate must be less than or equal to 1"),
        ({"tokens": "norm(after=-1)"}, "after must be greater than or equal to 0"),
        ({"tokens": "norm(after=3)"}, r"tokens: after=3 is behind the cut: .*blocks 1\.\.2"),
        ({"tokens": "residual_gate(rate_mode='limit')"}, "rate_mode"),
        ({"tokens": "norm(rate_mode='threshold')"}, "rate_mode"),
        ({"tokens": "nrom()"}, "did you mean 'norm'"),
        (
            {"tokens": "norm()", "model": "lenet(image_size=16)", "cut": 1},
            "tokens: only images of a ViT",
        ),
        ({"tokens": "norm()", "stack": 4}, "stack: .*all tokens"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(changes, sentence):
    with pytest.raises((SpecError, ValueError), match=sentence) as refusal:
        prepared(**changes)
    assert "\n" not in str(refusal.value)
