"""Configurations as people make them: each fault is named with its line and its remedy."""

import pytest

from fl_split.spec_errors import SpecError
from simulations.runs.settings import read_overrides, read_toml
from simulations.runs.toml_faults import read_text

GOOD = 'dataset = "digits"\nclients = 4\ncut = 1\nfraction = 1\n'
VALUES = {"dataset": "digits", "clients": 4, "cut": 1, "fraction": 1}


def read(tmp_path, data):
    file = tmp_path / "c.toml"
    file.write_bytes(data if isinstance(data, bytes) else data.encode())
    return read_toml(file)


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_mark_and_any_ends_of_lines_are_read_over(tmp_path, mark, end):
    assert read(tmp_path, mark + GOOD.replace("\n", end).encode()) == VALUES


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (GOOD.encode("utf-16"), "is UTF-16, or no text; save it as UTF-8"),
        (GOOD.encode("utf-16-le"), "is UTF-16, or no text; save it as UTF-8"),
        (GOOD.encode() + "# Größe\n".encode("latin-1"), "line 5, `# Größe`: not UTF-8, probably"),
        ("dataset = \u201cdigits\u201d\n", 'curly quotes; write `dataset = "digits"`'),
        ("a = 1\ndataset = digits\n", 'line 2, `dataset = digits`: write `dataset = "digits"`'),
        (GOOD + "clients = 5\n", "line 5, `clients = 5`: clients is given twice, first in line 2"),
        ("x = True\n", "write `x = true`"),
        ("x = None\n", "leave the line out"),
        ("x =\n", "no value; write one after ="),
        ("x = 4;\n", "nothing stands behind a value; write `x = 4`"),
        ("x = 4 y = 5\n", "one key in a line"),
        ("x 4\n", "line 1, `x 4`: expected key = value"),
        ('x = "a\n', "the text has no quote at its end"),
        ("clients: 4\n", "a colon where TOML has =; write `clients = 4`"),
        ("dataset: digits\n", 'write `dataset = "digits"`'),
        ('{"dataset": "digits"}', "this is JSON"),
        ("dataset = \"local('C:\\data\\x')\"\n", "write `dataset = \"local('C:/data/x')\"`"),
        ('model = "vit"\n[model]\nname = "vit"\n', "model is given already, first in line 1"),
        ('[model]\nname = "vit"\npatch_size = 4\n', 'write `model = "vit(patch_size=4)"` above'),
        (
            "clients = 4\n[training]\nlr = 0.1\n",
            "line 2, `[training]`: [training] is no section: keys stand outside sections; write lr",
        ),
        ("[[comparre]]\nclients = 4\n", "`[[comparre]]`: [comparre] is no section; did you mean"),
        ('clients = "4"\n', "clients must be a whole number; write `clients = 4`"),
        ("clients = 4.0\n", "clients must be a whole number; write `clients = 4`"),
        ("rounds = 1e0\n", "rounds must be a whole number; write `rounds = 1`"),
        ("rounds = true\n", "rounds must be a whole number; as in `rounds = 20`"),
        ('fraction = "0.5"\n', "fraction must be a number; write `fraction = 0.5`"),
        ('deterministic = "yes"\n', "must be true or false; as in `deterministic = false`"),
        ('deterministic = "True"\n', "must be true or false; write `deterministic = true`"),
        ("dataset = 5\n", 'dataset must be a text; as in `dataset = "digits()"`'),
        ("seed = [1, 2]\n", "several values stand in a table: [sweep]"),
        ('[[compare]]\nclients = 3\n[[compare]]\nclients = "4"\n', 'line 4, `clients = "4"`'),
    ],
)  # fmt: skip
def test_every_fault_is_named_with_what_to_write_instead(tmp_path, data, message):
    with pytest.raises(SpecError) as error:
        read(tmp_path, data)
    assert message in str(error.value) and "c.toml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("line", ["cut = 1", 'cut = "block1"', "fraction = 1", "plugins = []"])
def test_values_of_the_right_type_pass(tmp_path, line):
    key, value = line.split(" = ")
    assert read(tmp_path, line)[key] == {"1": 1, '"block1"': "block1", "[]": []}[value]


def test_what_cannot_be_read_says_why(tmp_path):
    with pytest.raises(SpecError, match="no configuration file"):
        read_toml(tmp_path / "none.toml")
    with pytest.raises(SpecError, match="cannot be read: Is a directory"):
        read_toml(tmp_path)
    with pytest.raises(SpecError, match="UTF-16"):
        (tmp_path / "x.txt").write_bytes(b"a\0b")
        read_text(tmp_path / "x.txt")


def test_overrides_may_have_spaces_and_are_given_once():
    assert read_overrides(["clients = 5", "codec = fp16"]) == {"clients": 5, "codec": "fp16"}
    with pytest.raises(SpecError, match="clients is given twice"):
        read_overrides(["clients=5", "clients=6"])
