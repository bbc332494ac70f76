"""The cache of decoded images: equal pixels, safe under several fillers, a kill, a full disk."""

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import PIL
import pytest
from PIL import Image
from typer.testing import CliRunner

from fl_split.models.preprocessing import Preprocessing
from simulations.cli import main as cli
from simulations.data import cache, decoding, encoded
from simulations.data.decoding import Wishes, decide, decode, look_at
from simulations.data.descriptions import Local
from simulations.data.images import DataError, OnDisk, OnTheFly
from simulations.data.memory import in_memory
from simulations.data.pictures import RULES
from simulations.runs.experiment_data import silent


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache that takes sets of any size."""
    monkeypatch.setenv(cache.VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(cache, "IN_MEMORY", 0)
    return tmp_path / "cache"


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "a.parquet"
    write(path, 0)
    return path


def write(path, first):
    draw = np.random.default_rng(first)
    images = [Image.fromarray(draw.integers(0, 255, (16, 16), dtype=np.uint8)) for _ in range(30)]
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["a", "b"])}
    )
    datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 15}, features).to_parquet(path)
    return images


def decoded(path, limit=1e9, seed=0, progress=silent, test_fraction=0.2):
    looked = look_at(Local(path=str(path)).open(test_fraction, seed), "error", silent)
    train, test, _ = decide(looked, Wishes(), 16, 1, Preprocessing())
    return looked.source, *decode(looked, "a", (train, test), limit, progress)


def test_rows_from_disk_are_those_of_memory_and_on_the_fly(folder, data, monkeypatch):
    source, on_disk, _, _ = decoded(data)
    assert isinstance(on_disk.images, OnDisk)
    kept = on_disk[:]
    cache.clear()
    on_the_fly = decoded(data, limit=0)
    assert on_the_fly[3][0].text == "decoded on the fly, since cache_gb is 0"
    monkeypatch.setattr(cache, "IN_MEMORY", 2**20)
    in_memory = decoded(data)[1]
    rows = np.array([5, 0, 23, 5])
    on_the_fly[1].prefetch(rows)
    truth = np.stack([np.asarray(source.train.table[int(k)]["image"]) for k in source.train.rows])
    elsewhere = pickle.loads(pickle.dumps(on_the_fly[1]))  # as in a worker
    elsewhere.prefetch(rows)
    for images in (kept, on_the_fly[1], elsewhere, in_memory):
        assert images.shape == (24, 1, 16, 16)
        assert np.array_equal(images[rows][:, 0], truth[rows])
        assert np.array_equal(images[:][:, 0], truth)


def test_other_seeds_and_fractions_share_an_entry(folder, data):
    decoded(data)
    decoded(data, seed=1)
    decoded(data, test_fraction=0.5)
    (entry,) = cache.entries()
    assert (entry.shape, entry.bytes) == ((30, 1, 16, 16), 30 * 256)
    files = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    assert files > 30 * 256
    assert cache.clear() == files and cache.entries() == []


def test_a_second_start_reads_no_image(folder, data, monkeypatch):
    decoded(data)
    monkeypatch.setattr(decoding.EncodedImages, "__getitem__", None)
    monkeypatch.setattr(decoding.EncodedImages, "chunks", None)
    decoded(data)


def test_a_file_that_was_replaced_is_decoded_anew(folder, data):
    before = data.stat()
    first = decoded(data)[1][:]
    write(data, 1)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert not np.array_equal(decoded(data)[1][:], first)
    assert len(cache.entries()) == 2


def test_unpacked_archives_are_counted_shown_and_cleared(folder, data, tmp_path):
    for name in "ab":
        (tmp_path / "d" / name).mkdir(parents=True)
        for number in range(10):
            noise = np.random.default_rng(number).integers(0, 255, (16, 16), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / "d" / name / f"{number}.png")
    archive = shutil.make_archive(str(tmp_path / "d"), "zip", tmp_path / "d")
    unpacked = sum(file.stat().st_size for file in (tmp_path / "d").rglob("*.png"))
    _, _, _, said = decoded(archive, limit=unpacked + 5000)  # 20 images take 5,120 bytes
    assert "over its limit" in said[0].text
    assert cache.size_of(cache.ARCHIVES) == unpacked
    text = CliRunner().invoke(cli.app, ["cache"]).output
    assert f"and {unpacked / 1e9:.3g} GB of unpacked archives" in " ".join(text.split())
    assert cache.clear() >= unpacked and cache.size_of(cache.ARCHIVES) == 0


@pytest.mark.parametrize("part", ["VERSION", "none"])
def test_other_rules_of_decoding_make_another_entry(folder, data, monkeypatch, part):
    decoded(data)
    if part == "VERSION":
        monkeypatch.setattr(cache, part, "2-99.0")
    decoded(data)
    expected = 2 if part == "VERSION" else 1
    assert len(cache.entries()) == len([*folder.glob("known/*.json")]) == expected


def test_rules_and_pillow_are_the_version_of_decoding():
    assert f"{RULES}-{PIL.__version__}" == cache.VERSION


@pytest.mark.parametrize("beside", [True, False])
def test_large_images_are_read_a_few_at_a_time(tmp_path, monkeypatch, beside):
    """Of 10,000 bytes, 25,000 allowed: three files (the third goes beyond), two inside a table."""
    files = []
    for number in range(7):
        (tmp_path / f"{number}.bin").write_bytes(bytes([number]) * 10_000)
        inside = {"bytes": bytes([number]) * 10_000, "path": None}
        files.append({"bytes": None, "path": str(tmp_path / f"{number}.bin")} if beside else inside)
    table = datasets.Dataset.from_dict(
        {"image": files}, datasets.Features({"image": datasets.Image(decode=False)})
    )
    monkeypatch.setattr(encoded, "CHUNK_BYTES", 25_000)
    images = encoded.EncodedImages(table, "image", np.array([6, 1, 2, 3, 4, 5]))
    chunks = [*images.chunks()]
    assert [contents[0] for _, some in chunks for contents in some] == [6, 1, 2, 3, 4, 5]
    assert max(len(some) for _, some in chunks) == (3 if beside else 2)
    assert [start for start, _ in chunks] == ([0, 3] if beside else [0, 2, 4])
    assert [len(some) for _, some in images.chunks(most=1)] == [1] * 6


def test_beyond_its_limit_images_are_decoded_on_the_fly_and_it_is_said(folder, data):
    _, train, _, said = decoded(data, limit=1000)
    assert isinstance(getattr(train, "images", train), OnTheFly)
    assert "over its limit cache_gb=1e-06" in said[0].text


def test_an_error_without_a_number_says_what_it_is(folder, data, monkeypatch):
    def fail(*arguments):
        raise OSError("no locks here")

    monkeypatch.setattr(cache, "FileLock", fail)
    assert decoded(data)[3][0].text.endswith("cannot be written: no locks here")


@pytest.mark.parametrize("obstacle", ["a file", "no permission"])
def test_where_nothing_can_be_written_images_are_decoded_on_the_fly(folder, data, obstacle):
    if obstacle == "a file":
        folder.write_text("in the way")
    else:
        folder.mkdir()
        folder.chmod(0o500)
        if os.access(folder, os.W_OK):
            os.environ[cache.VARIABLE] = "/proc/no"  # root may write anywhere but there
    said = decoded(data)[3]
    assert "on the fly, since the cache in" in said[0].text and "cannot be written" in said[0].text


def test_a_disk_that_fills_up_leaves_nothing_half_written(folder, data):
    def fill(text, done, total):
        raise OSError(28, "No space left on device")

    said = decoded(data, progress=fill)[3]
    assert "No space left" in said[0].text
    assert cache.entries() == [] and not [*folder.glob("images/*.part")]
    assert decoded(data)[3] == []


def test_an_image_that_cannot_be_decoded_leaves_nothing_half_written(folder, tmp_path):
    rows = [tmp_path / "d" / name / f"{k}.png" for k in range(6) for name in "ab"]
    for row in rows:
        row.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(0).integers(0, 255, (16, 16), dtype=np.uint8)
        Image.fromarray(noise).save(row)
    rows[3].write_bytes(rows[3].read_bytes()[:200])
    with pytest.raises(DataError, match=r"image of row \d+ \(.*1.png\) cannot be used: .*skip"):
        decoded(tmp_path / "d")
    assert not [*folder.glob("images/*.part")]


FILLER = """
import sys, time
from simulations.data import cache
cache.IN_MEMORY = 0
sys.path.insert(0, {tests!r})
from test_cache import decoded
def slow(text, done, total):
    print(text, flush=True)
    time.sleep({seconds})
images = decoded({path!r}, progress=slow)[1]
print("sum", int(images[:].sum()), flush=True)
"""


def filler(folder, data, seconds):
    here = os.path.dirname(__file__)
    code = FILLER.format(path=str(data), seconds=seconds, tests=here)
    environment = {**os.environ, cache.VARIABLE: str(folder)}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_a_killed_filler_and_two_at_once_leave_one_whole_entry(folder, data):
    killed = filler(folder, data, 60)
    assert killed.stdout.readline() == "decode images\n"
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    assert cache.entries() == [] and len([*folder.glob("images/*.part")]) == 1
    first, second = (filler(folder, data, 1) for _ in range(2))
    sums = [one.communicate()[0].splitlines() for one in (first, second)]
    assert sorted(map(len, sums)) == [1, 2]  # one of them filled it
    expected = int(decoded(data)[1][:].sum())
    assert {lines[-1] for lines in sums} == {f"sum {expected}"}
    assert len(cache.entries()) == 1 and not [*folder.glob("images/*.part")]
    assert time.time() - cache.entries()[0].made < 600


def test_a_cache_that_was_cleared_is_said_to_be(folder, data):
    images = decoded(data)[1]
    cache.clear()
    with pytest.raises(DataError, match="was it cleared"):
        images[np.array([0])]


SELECTIONS = {
    "take": (lambda table: table.take(10), range(10)),
    "skip": (lambda table: table.skip(10), range(10, 20)),
    "one in three": (lambda table: table.select(range(0, 20, 3)), range(0, 20, 3)),
    "scattered": (lambda table: table.select([19, 4, 6, 1]), [19, 4, 6, 1]),
    "repeated": (lambda table: table.select([2, 2, 4, 4]), [2, 2, 4, 4]),
    "shard 0": (lambda table: table.shard(4, 0, contiguous=True), range(5)),
    "shard 1": (lambda table: table.shard(4, 1, contiguous=True), range(5, 10)),
    "slice of indices": (lambda table: table.select([5, 9, 7, 8, 3]).skip(1), [9, 7, 8, 3]),
    "beside another": (
        lambda table: datasets.concatenate_datasets([table.take(4), table.skip(16)]),
        [*range(4), *range(16, 20)],
    ),
    "beside one in memory": (
        lambda table: datasets.concatenate_datasets([table.take(4), painted([30, 33])]),
        [*range(4), 30, 33],
    ),
    "beside another in memory": (
        lambda table: datasets.concatenate_datasets([table.take(4), painted([40, 41])]),
        [*range(4), 40, 41],
    ),
}


def painted(values):
    """Return a table of images, each of one grey."""
    pixels = [np.full((8, 8), value, dtype=np.uint8) for value in values]
    kinds = {"image": datasets.Image(), "label": datasets.Value("int64")}
    labels = [value // 2 % 2 for value in values]
    return datasets.Dataset.from_dict({"image": pixels, "label": labels}, datasets.Features(kinds))


def test_selections_of_one_table_on_disk_are_told_apart(folder, tmp_path):
    painted(range(20)).save_to_disk(tmp_path / "saved")
    table = datasets.load_from_disk(tmp_path / "saved")
    signatures = set()
    for select, truth in SELECTIONS.values():
        looked = look_at(in_memory((select(table), select(table))).open(0.2, 0), "error", silent)
        transforms = decide(looked, Wishes(), 8, 1, Preprocessing())[:2]
        for images in decode(looked, "a", transforms, 1e9, silent)[:2]:
            assert images[:][:, 0, 0, 0].tolist() == [*truth]
        again = in_memory((select(table), select(table))).open(0.2, 0)
        assert again.stores()[0].signature() == looked.stores[0].signature()
        signatures.add(looked.stores[0].signature())
    assert len(signatures) == len(SELECTIONS)


def test_two_selections_of_one_table_train_and_test_on_their_own_images(folder, tmp_path):
    painted(range(20)).save_to_disk(tmp_path / "saved")
    table = datasets.load_from_disk(tmp_path / "saved")
    looked = look_at(in_memory((table.take(10), table.skip(10))).open(0.2, 0), "error", silent)
    transforms = decide(looked, Wishes(), 8, 1, Preprocessing())[:2]
    train, test, _ = decode(looked, "a", transforms, 1e9, silent)
    assert train[:][:, 0, 0, 0].tolist() == [*range(10)]
    assert test[:][:, 0, 0, 0].tolist() == [*range(10, 20)]
