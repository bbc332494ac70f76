"""Parts of users: named by module or file, offered by packages, given as objects."""

import hashlib
import pickle
import subprocess
import sys
import zlib
from dataclasses import dataclass

import pytest
import torch
from typer.testing import CliRunner

from fl_split import foreign
from fl_split.codecs import CODECS, Codec, Identity, parse_codec
from fl_split.foreign import Given, SpecError, plug_in
from fl_split.payload import Payload
from fl_split.specs import canonical, parse, shortened, stages
from fl_split.tables import signature
from simulations.api.checks import check
from simulations.api.objects import as_spec
from simulations.cli.main import app
from simulations.runs import checkpoint
from simulations.runs.experiment import Experiment
from simulations.runs.origins import origins
from simulations.runs.settings import read_toml

PART = '''
import torch
from dataclasses import dataclass
from fl_split.codecs import Codec
from fl_split.payload import Payload

@dataclass(frozen=True)
class Doubled(Codec):
    """Sends twice the numbers; gives back the half of them."""
    factor: float = 2.0

    def pack(self, payload, generator):
        return Payload({k: v * self.factor for k, v in payload.carried.items()}, payload.side)

    def unpack(self, packed):
        return Payload({k: v / self.factor for k, v in packed.carried.items()}, packed.side)

@dataclass(frozen=True)
class Lost(Doubled):
    """Breaks a law: it draws from everybody's random numbers."""
    def pack(self, payload, generator):
        return Payload({k: torch.rand_like(v) for k, v in payload.carried.items()}, payload.side)

class NoPart:
    pass
'''

TINY = {
    "clients": 4,
    "rounds": 2,
    "model": "vit(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, patch_size=4)",
    "cut": 1,
    "batch_size": 64,
    "engine": "inline()",
}


@dataclass(frozen=True)
class Named(Codec):
    """A part that a test gives as an object: it sends numbers times its share."""

    share: float = 0.5

    def pack(self, payload, generator):
        values = {k: (v * self.share).half() for k, v in payload.carried.items()}
        return Payload(values, payload.side)

    def unpack(self, packed):
        values = {k: v.float() / self.share for k, v in packed.carried.items()}
        return Payload(values, packed.side)


@pytest.fixture
def parts(tmp_path, monkeypatch):
    """A file of parts in a folder of its own, where one is, under a name that nothing has."""
    name = f"own{zlib.crc32(str(tmp_path).encode())}"
    file = tmp_path / f"{name}.py"
    file.write_text(PART)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield file
    sys.modules.pop(name, None)


def test_a_part_is_named_by_its_module(parts):
    built = parse(f"{parts.stem}:Doubled(4.0)", CODECS)
    assert repr(built) == "Doubled(factor=4.0)"
    assert canonical(f"{parts.stem}:Doubled", CODECS) == f"{parts.stem}:Doubled(factor=2.0)"
    chain = parse_codec(f"{parts.stem}:Doubled(factor=3.0) | fp16")
    assert repr(chain) == "Doubled(factor=3.0) | FP16()"


def test_stages_keep_references_and_texts_apart():
    text = "a.b:C(1, path='x:y|z') | fp16() | m:N"
    assert stages(text) == ["a.b:C(1, path='x:y|z')", "fp16()", "m:N"]


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("no_such_module:Codec", "No module named 'no_such_module'"),
        ("{name}:Dubled", "did you mean 'Doubled'?"),
        ("{name}:Doubled(factr=1)", "did you mean 'factor'?"),
        ("{name}:NoPart", "is no Codec"),
        ("{name}:Doubled(1, 2)", "2 values for 1 arguments"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(parts, spec, said):
    with pytest.raises(SpecError, match=said.replace("?", r"\?")) as caught:
        parse(spec.format(name=parts.stem), CODECS)
    assert "\n" not in str(caught.value)


def test_a_file_that_raises_names_itself_and_its_error(tmp_path):
    file = tmp_path / "raises_at_once.py"
    file.write_text("raise RuntimeError('no battery')")
    with pytest.raises(SpecError, match=r"raises_at_once.py' fails: RuntimeError: no battery"):
        plug_in([str(file)])
    assert "raises_at_once" not in sys.modules


def test_a_file_whose_name_is_taken_is_refused(tmp_path):
    (tmp_path / "json.py").write_text("x = 1")
    import json

    with pytest.raises(SpecError, match="another module is called 'json' already"):
        plug_in([str(tmp_path / "json.py")])
    assert sys.modules["json"] is json


def test_a_file_that_changes_is_imported_again(parts):
    plug_in([str(parts)])
    first = sys.modules[parts.stem].Doubled
    plug_in([str(parts)])
    assert sys.modules[parts.stem].Doubled is first  # parts that are there stay what they are
    parts.write_text(PART.replace("2.0", "5.0"))
    plug_in([str(parts)])
    assert parse(f"{parts.stem}:Doubled", CODECS).factor == 5.0


def test_an_installed_package_offers_parts_by_plain_names(parts, tmp_path):
    installed = tmp_path / "doubling-1.2.dist-info"
    installed.mkdir()
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: doubling\nVersion: 1.2\n")
    (installed / "entry_points.txt").write_text(
        f"[fl_split.codecs]\ndoubled = {parts.stem}:Doubled\n"
    )
    sys.path.append(str(tmp_path))
    assert repr(parse("doubled(3.0)", CODECS)) == "Doubled(factor=3.0)"
    assert check("doubled(3.0)") == "codec"
    with pytest.raises(SpecError, match="did you mean 'doubled'"):
        parse("dubled", CODECS)


def test_an_object_stands_where_a_spec_does_and_survives_copies(tmp_path):
    codec = Given.of(Named(0.3), "Named(share=0.3)", "a1b2")
    experiment = Experiment.from_dict({**TINY, "codec": codec})
    for one in (
        experiment,
        Experiment.from_dict(experiment.model_dump()),
        experiment.model_copy(update={"seed": 1}),
        pickle.loads(pickle.dumps(experiment)),
    ):
        assert one.parts.codec == Named(0.3) and one.codec == "object('Named(share=0.3)', 'a1b2')"
    assert shortened(str(codec), CODECS) == "Named(share=0.3)"


def test_an_object_of_another_kind_is_refused():
    with pytest.raises(SpecError, match="is no Codec"):
        Experiment.from_dict({"codec": Given.of(torch.nn.ReLU(), "ReLU()", "a1")})


def test_a_saved_object_is_asked_for_again():
    with pytest.raises(SpecError, match=r"codec: Named\(\) was an object in memory; give it again"):
        Experiment.from_dict({"codec": "object('Named()', 'a1')"})


def test_a_subclass_takes_its_own_arguments():
    @dataclass(frozen=True)
    class Own(Identity):
        scale: float = 1.0

    class Below(Own):
        pass

    assert [*signature(Own).parameters] == [*signature(Below).parameters] == ["scale"]
    assert not signature(object).parameters


def test_plugins_lie_beside_the_file_that_names_them(parts, tmp_path, monkeypatch):
    config = tmp_path / "own.toml"
    config.write_text(f'plugins = ["{parts.name}"]\ncodec = "{parts.stem}:Doubled"\n')
    monkeypatch.chdir("/")
    experiment = Experiment.from_dict(read_toml(config))
    assert experiment.plugins == str(parts)
    monkeypatch.chdir(tmp_path)
    near = Experiment.from_dict({"plugins": parts.name})
    assert near.plugins == str(parts)  # a saved one is read from other folders
    assert repr(experiment.parts.codec) == "Doubled(factor=2.0)"


def test_origins_tell_the_code_of_what_is_not_ours(parts):
    experiment = Experiment.from_dict({"plugins": str(parts), "codec": f"{parts.stem}:Doubled"})
    digest = hashlib.sha256(PART.encode()).hexdigest()
    parts.write_text(PART + "# edited while it is in use")  # what runs is what was imported
    told = {"part": f"{parts.stem}:Doubled", "version": "", "sha256": digest}
    assert origins(experiment) == {"codec": [told]}
    assert origins(Experiment.from_dict({})) == {}


def test_a_run_does_not_go_on_with_code_that_has_changed(parts, tmp_path):
    spec = f"{parts.stem}:Doubled"
    settings = {**TINY, "plugins": str(parts), "codec": spec, "checkpoint_every": 1}
    keys = [f"{key}={value}" for key, value in settings.items()]
    config = tmp_path / "own.toml"
    config.write_text("")
    folder = tmp_path / "run"
    budget = 'budget="rounds(limit=1)"'
    run = CliRunner().invoke(app, ["run", str(config), *keys, budget, "--out", str(folder)])
    assert run.exit_code == 0, run.output
    kept = checkpoint.Checkpoint(1, {}, {}, {})
    kept.write(folder, Experiment.from_dict({**settings, "budget": "rounds(limit=1)"}))
    checkpoint.read(folder)
    parts.write_text(PART.replace("2.0", "5.0"))
    told = origins(Experiment.from_dict(settings))["codec"][0]["sha256"]
    assert told == hashlib.sha256(PART.replace("2.0", "5.0").encode()).hexdigest()
    with pytest.raises(checkpoint.CheckpointError, match="the code of codec is") as caught:
        checkpoint.read(folder)
    assert "\n" not in str(caught.value)
    parts.unlink()
    with pytest.raises(SpecError, match="plugins: no file"):
        checkpoint.read(folder)


def test_check_holds_a_part_to_the_laws_of_its_kind(parts):
    def checked(spec):
        done = CliRunner().invoke(app, ["check", spec, "--plugin", str(parts)])
        return done.exit_code, " ".join(done.output.split())

    code, told = checked(f"{parts.stem}:Doubled(factor=4.0)")
    assert code == 0 and "keeps the laws of a codec" in told
    code, told = checked(f"{parts.stem}:Lost")
    assert code == 1 and "breaks a law" in told
    code, told = checked(f"{parts.stem}:NoPart")
    assert code == 2 and "it has no laws to be held to" in told


def test_parts_of_a_file_travel_to_another_process(parts):
    plug_in([str(parts)])
    found = foreign.travelling([parts.stem, "torch.nn", "fl_split.codecs", "__main__"])
    assert [module.__name__ for module in found] == [parts.stem]
    code = "import pickle, sys; print(pickle.loads(sys.stdin.buffer.read()).part)"
    script = sys.modules[parts.stem]
    import cloudpickle

    cloudpickle.register_pickle_by_value(script)
    try:
        data = pickle.dumps(Given.of(script.Doubled(3.0), "Doubled", "a1"))
    finally:
        cloudpickle.unregister_pickle_by_value(script)
    done = subprocess.run(
        [sys.executable, "-c", code], input=data, capture_output=True, check=True, cwd="/"
    )
    assert done.stdout.decode().strip() == "Doubled(factor=3.0)"


def test_list_shows_parts_of_a_file_as_foreign(parts):
    shown = CliRunner().invoke(
        app, ["list", "codecs", "--plugin", str(parts)], env={"COLUMNS": "200"}
    )
    told = " ".join(shown.output.split())
    assert f"{parts.stem}:Doubled(factor=2.0)" in told and f"Not ours: module {parts.stem}." in told
    assert "NoPart" not in told and "adc(ratio=0.1" in told


@pytest.mark.slow
def test_parts_of_a_file_and_of_a_script_run_in_ray_workers(parts, on_ray, simulate):
    named = {"plugins": str(parts), "codec": f"{parts.stem}:Doubled(factor=3.0)"}
    given = {"codec": Given.of(Named(0.3), "Named(share=0.3)", "a1b2")}
    usual = simulate()
    for changes in (named, given):
        found = on_ray(**changes)
        assert found.equals(simulate(**changes)) and not found.equals(usual)


def test_an_object_of_an_importable_class_is_its_spec(parts):
    plug_in([str(parts)])
    given = as_spec("codec", sys.modules[parts.stem].Doubled(3.0))
    assert given == f"{parts.stem}:Doubled(factor=3.0)" and not isinstance(given, Given)
