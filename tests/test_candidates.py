"""Data that can be read in several ways: the right one is taken, and the others are named."""

import json
import os
import shutil
import tarfile
import zipfile

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from simulations.data.decoding import look_at
from simulations.data.images import DataError
from simulations.data.memory import in_memory
from simulations.runs.experiment import Experiment
from simulations.runs.experiment_data import prepare_labels, silent
from tests.test_files import both, decisions, hub_table, opened, pairs, picture, png, truth
from tests.test_files import write_folder as write

A_B = {number: "ab"[number % 2] for number in range(24)}


def loose(root, numbers, name="{}.png"):
    """Write images that lie together in a folder."""
    root.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        picture(number).save(root / name.format(number))


def table(path, rows, header="file,label"):
    """Write a spreadsheet."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n")
    return path


def rows(numbers, name="{}.png"):
    return [f"{name.format(number)},{A_B[number]}" for number in numbers]


def sub(numbers):
    return {number: A_B[number] for number in numbers}


@pytest.mark.parametrize(
    ("more", "unused"),
    [
        (["unlabeled"], "'unlabeled' (6)"),
        (["val", "dev"], "'dev' (6), 'val' (6)"),
        (["Train"], "'Train' (6)"),
    ],
)
def test_beside_a_folder_to_train_on_all_folders_are_splits(tmp_path, decoded, more, unused):
    for place, split in enumerate(["train", "test", *more]):
        write(tmp_path / split, range(6 * place, 6 * place + 6))
    source = opened(tmp_path)
    assert pairs(source, decoded) == [truth(range(6)), truth(range(6, 12))]
    assert f"not used: {unused}" in decisions(source, "splits")


def test_folders_of_splits_may_lie_below_those_of_classes(tmp_path, decoded):
    for name, first in (("cat", 0), ("dog", 9)):
        loose(tmp_path / name / "train", range(first, first + 6))
        loose(tmp_path / name / "test", range(first + 6, first + 9))
    source = opened(tmp_path)
    cats, dogs = range(9), range(9, 18)
    named = {**dict.fromkeys(cats, "cat"), **dict.fromkeys(dogs, "dog")}
    train = [*cats[:6], *dogs[:6]]
    assert pairs(source, decoded)[0] == {number: named[number] for number in train}
    assert pairs(source, decoded)[1] == {k: named[k] for k in range(18) if k not in train}
    assert "below those of classes" in decisions(source, "splits")


@pytest.mark.parametrize(
    ("folders", "said"),
    [
        (["cat/train", "cat/test", "dog"], "some classes hold folders of splits"),
        (["a/train/cat", "a/test/cat", "b/train/cat"], "splits lie between others, as 'a/t"),
        (["train", "test"], "the folders test, train are splits and hold no folders of classes"),
        (["test/cat", "val/cat"], "has the splits 'test' .3., 'validation' .3.; name one with tr"),
    ],
)
def test_splits_that_are_in_no_order_are_refused(tmp_path, folders, said):
    for folder in folders:
        loose(tmp_path / folder, range(3))
    with pytest.raises(DataError, match=said) as caught:
        opened(tmp_path)
    assert "\n" not in str(caught.value)


def test_what_is_trained_on_is_not_tested_on(tmp_path):
    for split in ("train", "test"):
        write(tmp_path / split, range(6))
    with pytest.raises(DataError, match="'test' is trained on, so it cannot be tested on too"):
        opened(tmp_path, train="test", test="test")


def test_a_table_that_names_the_images_of_one_split_is_taken(tmp_path, decoded):
    loose(tmp_path / "train", range(6))
    loose(tmp_path / "test", range(6, 12))
    table(tmp_path / "train.csv", rows(range(6)))
    source = opened(tmp_path)
    assert both(source, decoded) == sub(range(6))
    assert "6 images that train.csv does not name are left out" in decisions(source, "files")


def test_a_table_beside_folders_that_are_no_classes_is_taken(tmp_path, decoded):
    loose(tmp_path / "part_1", range(6))
    loose(tmp_path / "part_2", range(6, 12))
    path = table(tmp_path / "metadata.csv", rows(range(12), "{}"), "image_id,dx")
    assert both(opened(tmp_path), decoded) == sub(range(12))
    table(path, [f"{k},{A_B[k]},{k}" for k in range(12)], "image_id,dx,age")
    with pytest.raises(DataError, match=r"any of dx, age may be the label.*; or move metadata.csv"):
        opened(tmp_path)
    assert both(opened(tmp_path, label="dx"), decoded) == sub(range(12))
    table(path, ["x,1", "y,2"], "name,colour")
    source = opened(tmp_path)
    assert source.class_names == ["part_1", "part_2"]
    assert "names of folders; not read: metadata.csv" in decisions(source, "files")


def test_tables_may_lie_in_a_folder_beside_the_images(tmp_path, decoded):
    loose(tmp_path / "images", range(12))
    table(tmp_path / "labels" / "train.csv", rows(range(8)))
    table(tmp_path / "labels" / "test.csv", rows(range(8, 12)))
    source = opened(tmp_path)
    assert pairs(source, decoded) == [sub(range(8)), sub(range(8, 12))]
    assert "left out" not in decisions(source, "files")


def test_a_path_is_never_taken_for_a_file_of_another_folder(tmp_path, decoded):
    loose(tmp_path / "a", range(6))
    names = [f"{folder}/{k}.png,{folder}" for k in range(6) for folder in "ab"]
    path = table(tmp_path / "l.csv", names)
    with pytest.raises(DataError, match=r"6 of 12 rows name no image.*'b/0.png', is no image bel"):
        opened(path)
    loose(tmp_path / "b", range(10, 16), "1{}.png")
    for k in range(6):
        (tmp_path / "b" / f"1{10 + k}.png").rename(tmp_path / "b" / f"{k}.png")
    truth_of = {**dict.fromkeys(range(6), "a"), **dict.fromkeys(range(10, 16), "b")}
    assert both(opened(path), decoded) == truth_of
    longer = [f"/somewhere/data/{row}" for row in names]
    assert both(opened(table(path, longer)), decoded) == truth_of


@pytest.mark.parametrize("form", ["{place}/pics/{k}.png", "../pics/{k}.png", "{k}.png"])
def test_paths_may_lead_out_of_the_folder_of_a_table(tmp_path, decoded, form):
    loose(tmp_path / "pics", range(6))
    path = tmp_path / "tables" / "l.csv"
    table(path, [f"{form.format(place=tmp_path, k=k)},{A_B[k]}" for k in range(6)])
    if form == "{k}.png":
        with pytest.raises(DataError, match=r"6 of 6 rows name no image in .*tables"):
            opened(path)
    else:
        assert both(opened(path), decoded) == sub(range(6))


@pytest.mark.parametrize("header", ["file,label", "file,dx"])
def test_rows_that_repeat_an_earlier_one_are_left_out(tmp_path, decoded, header):
    loose(tmp_path, range(12))
    path = table(tmp_path / "l.csv", [*rows(range(12)), "0.png,a", "3.png,b", "3.png,b"], header)
    source = opened(path)
    assert both(source, decoded) == sub(range(12))
    assert len(source.train) + len(source.test) == 12
    said = decisions(source, "files")
    assert "12 images are named in l.csv" in said
    assert "3 rows of l.csv repeat an earlier one and are left out" in said
    assert "that an earlier row names" not in said


def test_an_image_with_two_labels_is_refused(tmp_path):
    loose(tmp_path, range(6))
    path = table(tmp_path / "l.csv", [*rows(range(6)), "3.png,b", "4.png,b", "1.png,a", "4.png,b"])
    said = (
        r"l.csv: 3 rows name an image .* another label; the first, '4.png', is 'a' and 'b' in "
        r"column 'label': leave one row for each image$"
    )
    with pytest.raises(DataError, match=said):
        opened(path)


def test_an_image_in_two_splits_is_warned_of(tmp_path, decoded):
    loose(tmp_path, range(12))
    lines = [f"{row},{'test' if k > 8 else 'train'}" for k, row in enumerate(rows(range(12)))]
    path = table(tmp_path / "l.csv", [*lines, "0.png,a,test", "0.png,a,test"], "file,label,split")
    source = opened(path)
    assert pairs(source, decoded) == [sub(range(9)), sub([9, 10, 11, 0])]
    assert len(source.test) == 4
    said = decisions(source, "files")
    assert "1 rows of l.csv repeat an earlier one" in said
    assert "1 rows of l.csv name an image that an earlier row names" in said


def test_a_row_without_a_label_is_no_other_label(tmp_path, decoded):
    loose(tmp_path, range(12))
    path = table(tmp_path / "l.csv", ["3.png,", *rows(range(12))])
    with pytest.raises(DataError, match="1 rows without a label"):
        opened(path)
    assert both(opened(path, drop_missing="label"), decoded) == sub(range(12))


def test_a_table_of_the_library_that_names_images_again_is_read_alike(tmp_path, decoded):
    loose(tmp_path, range(13))
    path = tmp_path / "metadata.csv"
    table(path, [*rows(range(12)), "0.png,a", "3.png,b"], "file_name,label")
    source = opened(tmp_path)
    assert both(source, decoded) == sub(range(12))
    assert len(source.train) + len(source.test) == 12
    said = decisions(source, "files")
    assert "2 rows of metadata.csv repeat an earlier one and are left out" in said
    assert "1 images that metadata.csv does not name are left out" in said
    table(path, [*rows(range(12)), "3.png,a"], "file_name,label")
    with pytest.raises(DataError, match=r"1 rows name an image .*'3.png', is 'b' and 'a' in colu"):
        opened(tmp_path)


def test_a_table_of_the_library_may_hold_one_hot_labels(tmp_path, decoded):
    loose(tmp_path, range(12))
    hot = [{"file_name": f"{k}.png", "label": [k % 2, 1 - k % 2]} for k in [*range(12), 3]]
    path = tmp_path / "metadata.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in hot))
    source = opened(tmp_path)
    assert both(source, decoded) == {k: str(1 - k % 2) for k in range(12)}
    assert "1 rows of metadata.jsonl repeat an earlier one" in decisions(source, "files")


@pytest.mark.parametrize("kind", ["table", "folders"])
def test_classes_that_differ_only_by_case_or_blanks_are_warned_of(tmp_path, kind):
    names = ["healthy", "ill", "Healthy", "healthy "]
    if kind == "table":
        loose(tmp_path, range(12))
        place = table(tmp_path / "l.csv", [f"{k}.png,{names[k % 4]}" for k in range(12)])
    else:
        write(place := tmp_path / "d", range(12), names)
    source = opened(place)
    assert source.class_names == sorted(names)
    text = "classes 'Healthy' and 'healthy' and 'healthy ' differ only by case or blanks"
    assert [one.text for one in source.decisions if one.is_warning] == [text]


def test_rows_of_all_names_of_a_split_are_of_it(tmp_path, decoded):
    loose(tmp_path, range(12))
    splits = ["train"] * 4 + ["Train"] * 4 + ["test"] * 4
    lines = [f"{row},{split}" for row, split in zip(rows(range(12)), splits, strict=True)]
    path = table(tmp_path / "l.csv", lines, "file,label,split")
    source = opened(path)
    assert pairs(source, decoded) == [sub(range(8)), sub(range(8, 12))]
    assert "'train' (4), 'Train' (4), 'test' (4)" in decisions(source, "splits")
    for odd, shown in (("", "''"), ("later", "'later'")):
        table(path, [*lines[:11], f"11.png,b,{odd}"], "file,label,split")
        with pytest.raises(DataError, match=rf"'split' holds for 1 of 12 rows .*: {shown} \(1\)"):
            opened(path)


def test_names_of_files_are_read_as_they_are_written(tmp_path, decoded):
    loose(tmp_path, range(12), "{:04d}.png")
    loose(tmp_path, range(12, 14), "{:d}.png")
    lines = [f"{k:04d},{k % 2}" for k in range(12)]
    path = table(tmp_path / "l.csv", lines, "id,label")
    source = opened(path)
    assert both(source, decoded) == {k: str(k % 2) for k in range(12)}


def test_labels_that_look_like_names_of_images_are_labels(tmp_path, decoded):
    loose(tmp_path, range(12))
    path = table(tmp_path / "l.csv", [f"{k % 2},{k}.png" for k in range(12)], "label,file")
    for keys in ({}, {"label": "label"}):
        assert both(opened(path, **keys), decoded) == {k: str(k % 2) for k in range(12)}


def test_columns_of_a_table_that_would_do_too_are_named(tmp_path):
    loose(tmp_path, range(12))
    lines = [f"{k}.png,{k % 3},{k % 2}" for k in range(12)]
    source = opened(table(tmp_path / "l.csv", lines, "file,class,label"))
    assert source.class_names == ["0", "1"]
    assert "column 'label'; 'class' would do too" in decisions(source, "labels")
    paths = [str(tmp_path / f"{k}.png") for k in range(12)]
    frame = pd.DataFrame(
        {"path": paths, "image_path": "x", "target": [0, 1, 2] * 4, "category": [0, 1] * 6}
    )
    source = in_memory(frame).open(0.25, 0)
    assert source.class_names == ["0", "1", "2"]
    assert "'category' would do too" in decisions(source, "labels")
    assert "'image_path' would do too" in decisions(source, "images")


def test_arrays_that_would_do_too_are_named_and_can_be_chosen(tmp_path):
    pixels = np.zeros((12, 8, 8), dtype=np.uint8)
    fine, coarse = np.arange(12) % 4, np.arange(12) % 2
    path = tmp_path / "a.npz"
    np.savez(path, images=pixels, coarse_labels=coarse, fine_labels=fine)
    source = opened(path)
    assert len(source.class_names) == 2
    assert "'fine_labels' would do too" in decisions(source, "labels")
    assert len(opened(path, label="fine_labels").class_names) == 4
    with pytest.raises(DataError, match="none is called 'finer'"):
        opened(path, label="finer")
    np.savez(path, label_names=np.array(["a", "b"]), images=pixels, labels=coarse)
    source = opened(path)
    assert source.train_labels.tolist() == coarse[source.train.rows].tolist()
    assert "'label_names' would do too" in decisions(source, "labels")
    np.savez(path, x_train=pixels, y_train=coarse, x_test=pixels[:4])
    assert "x_test without the other half" in decisions(opened(path), "files")


@pytest.mark.parametrize("labels", [np.eye(3, dtype=int), np.eye(3), np.eye(3, dtype=bool)])
def test_one_hot_labels_of_arrays_are_classes(tmp_path, labels):
    pixels, codes = np.zeros((12, 8, 8), dtype=np.uint8), np.arange(12) % 3
    np.savez(tmp_path / "a.npz", x_train=pixels, y_train=labels[codes])
    for source in (
        opened(tmp_path / "a.npz"),
        in_memory((pixels, labels[codes])).open(0.25, 0),
        in_memory(((pixels, labels[codes]), (pixels, labels[codes]))).open(0.25, 0),
    ):
        assert source.train_labels.tolist() == codes[source.train.rows].tolist()


@pytest.mark.parametrize("names", [["train", "test"], ["first", "second"]])
def test_sheets_called_like_splits_are_splits_and_others_are_named(tmp_path, decoded, names):
    loose(tmp_path, range(12))
    path = tmp_path / "l.xlsx"
    halves = dict(zip(names, (range(8), range(8, 12)), strict=True))
    with pd.ExcelWriter(path) as writer:
        for name, numbers in halves.items():
            cells = {"file": [f"{k}.png" for k in numbers], "label": [A_B[k] for k in numbers]}
            pd.DataFrame(cells).to_excel(writer, sheet_name=name, index=False)
    source = opened(path)
    if names[0] == "train":
        assert pairs(source, decoded) == [sub(range(8)), sub(range(8, 12))]
        assert "left out" not in decisions(source, "files")
    else:
        assert both(source, decoded) == sub(range(8))
        assert "sheets 'first' of l.xlsx; not read: second" in decisions(source, "files")


def test_a_file_among_folders_of_classes_is_named(tmp_path, decoded):
    write(tmp_path, range(12))
    hub_table(range(20, 26)).to_parquet(tmp_path / "old.parquet")
    source = opened(tmp_path)
    assert both(source, decoded) == truth(range(12))
    assert "not read: old.parquet" in decisions(source, "files")


def test_a_table_of_the_library_that_was_changed_is_seen(tmp_path, decoded):
    loose(tmp_path, range(13))
    path = table(tmp_path / "metadata.csv", rows(range(12)), "file_name,label")
    source = opened(tmp_path)
    assert both(source, decoded) == sub(range(12))
    assert "1 images that metadata.csv does not name are left out" in decisions(source, "files")
    before = path.stat()
    table(path, [f"{k}.png,{'ba'[k % 2]}" for k in range(12)], "file_name,label")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert both(opened(tmp_path), decoded) == {k: "ba"[k % 2] for k in range(12)}


def test_splits_of_a_dict_that_are_not_used_are_named():
    given = {name: hub_table(range(6)) for name in ("train", "validation", "more")}
    source = in_memory(datasets.DatasetDict(given)).open(0.25, 0)
    assert not source.is_held_out
    text = "trained on 'train' (6), tested on 'validation' (6); not used: 'more' (6)"
    assert text in decisions(source, "splits")


@pytest.mark.parametrize("kind", ["lists", "columns"])
@pytest.mark.parametrize(("top", "scale"), [(1.0, 255), (1, 1), (2.0, 1)])
def test_numbers_are_scaled_alike_in_all_images_of_both_splits(tmp_path, decoded, kind, top, scale):
    """The first images are black and white, the last of the test split has the largest value."""
    values = [[1] * 16, *[[0.5 if top == 1.0 else 0] * 15 + [1]] * 9, [0] * 15 + [top]] * 2
    kept = [[type(top)(value) for value in image] for image in values]
    if top == 2.0:
        kept[:21] = [[min(value, 1.0) for value in image] for image in kept[:21]]
    for split, part in (("train", slice(0, 11)), ("test", slice(11, 22))):
        labels = {"label": [0, 1] * 5 + [0]}
        if kind == "lists":
            frame = pd.DataFrame({"image": kept[part], **labels})
            frame.to_parquet(tmp_path / f"{split}.parquet")
        else:
            frame = pd.DataFrame(kept[part], columns=[f"p{k}" for k in range(16)])
            frame.assign(**labels).to_csv(tmp_path / f"mnist_{split}.csv", index=False)
    source = opened(tmp_path)
    found = decoded(source)
    for pixels, part in zip(found, (kept[:11], kept[11:]), strict=True):
        assert np.array_equal(pixels.reshape(-1, 16), np.rint(np.array(part) * scale).astype(int))
    assert ("read as floats 0..1" in decisions(source, "images")) == (scale == 255)


def test_links_are_followed_but_not_in_circles(tmp_path, decoded):
    write(tmp_path / "data", range(12))
    shutil.move(tmp_path / "data" / "cat", tmp_path / "elsewhere")
    (tmp_path / "data" / "cat").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "ant" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "bee").rename(tmp_path / "data" / "__bee__")
    names = ["ant", "__bee__", "cat"]
    source = opened(tmp_path / "data")
    assert both(source, decoded) == truth(range(12), names)
    assert not decisions(source, "files")
    (tmp_path / "data" / "again").symlink_to(tmp_path / "elsewhere")
    text = "1 folders are links to others that are read too: their images count twice"
    assert text in decisions(opened(tmp_path / "data"), "files")


def test_empty_cells_before_the_first_image_are_read_over(tmp_path, decoded):
    cells = [None] * 20 + [png(k) for k in range(12)]
    frame = pd.DataFrame({"image": cells, "label": [None] * 20 + list("ab") * 6})
    frame.to_parquet(tmp_path / "a.parquet")
    source = opened(tmp_path / "a.parquet", drop_missing="label")
    assert both(source, decoded) == sub(range(12))


def test_a_folder_of_arrow_files_and_packed_arrays_are_read(tmp_path, decoded, monkeypatch):
    monkeypatch.setenv("FL_SPLIT_CACHE", str(tmp_path / "cache"))
    for split, numbers in (("train", range(9)), ("test", range(9, 15))):
        hub_table(numbers).save_to_disk(tmp_path / "saved" / split)
        (tmp_path / "arrow").mkdir(exist_ok=True)
        made = tmp_path / "saved" / split / "data-00000-of-00001.arrow"
        shutil.copy(made, tmp_path / "arrow" / f"{split}.arrow")
    assert pairs(opened(tmp_path / "arrow"), decoded) == [truth(range(9)), truth(range(9, 15))]
    pixels = np.stack([np.asarray(picture(k)) for k in range(12)])
    np.savez(tmp_path / "a.npz", images=pixels, labels=np.arange(12) % 2)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as file:
        file.write(tmp_path / "a.npz", "a.npz")
    assert both(opened(tmp_path / "a.zip"), decoded) == {k: str(k % 2) for k in range(12)}


def broken(tmp_path, name):
    """Write a file that is damaged."""
    write(tmp_path / "d", range(12))
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 8), dtype=np.uint8)
    place = tmp_path / name
    if name.endswith(".npz"):
        label = np.array(3) if "scalar" in name else np.arange(12) % 2
        np.savez(place, images=pixels, labels=label)
    elif name.endswith(".xlsx"):
        pd.DataFrame({"file": ["a"], "label": [1]}).to_excel(place)
    elif name == "out.tar":
        with tarfile.open(place, "w") as file:
            file.addfile(tarfile.TarInfo("../evil.png"))
    else:
        kind = "zip" if name.endswith(".zip") else "gztar"
        place = tmp_path / shutil.make_archive(str(tmp_path / "torn"), kind, tmp_path / "d")
    contents = bytearray(place.read_bytes())
    if "torn" in name:
        contents = contents[: len(contents) // 2]
    elif "flipped" in name:
        contents[len(contents) // 4] ^= 255
    place.write_bytes(contents)
    return place


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("torn.npz", "cannot load"),
        ("flipped.npz", "cannot load"),
        ("scalar.npz", "'labels' holds one value"),
        ("torn.xlsx", "cannot load"),
        ("torn.tar.gz", "cannot unpack"),
        ("torn.zip", "cannot unpack"),
        ("out.tar", "cannot unpack"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, monkeypatch, name, said):
    monkeypatch.setenv("FL_SPLIT_CACHE", str(tmp_path / "cache"))
    with pytest.raises(DataError, match=said) as caught:
        opened(broken(tmp_path, name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("form", [[[1, 0], [0, 1]], [[0], [1]], [0.0, 1.0]])
@pytest.mark.parametrize("partition", ["dirichlet(alpha=0.3)", "pathological()", "shard()"])
def test_partitions_go_by_classes_in_whatever_form(tmp_path, form, partition):
    labels = {"forms": form * 20, "plain": [0, 1] * 20}
    found = {}
    for name, some in labels.items():
        frame = pd.DataFrame({"image": [png(k) for k in range(40)], "label": some})
        frame.to_parquet(tmp_path / f"{name}.parquet")
        spec = f"local(path='{tmp_path / name}.parquet')"
        keys = {"dataset": spec, "clients": 4, "partition": partition}
        rows = prepare_labels(Experiment.from_dict(keys))[0].partitions
        found[name] = [part.tolist() for part in rows]
    assert found["forms"] == found["plain"]


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([[], [0], [1], [0]], "column 'label': 1 rows without a label, first row 0"),
        ([[None, 1], [0, 1], [1, 0], [0, 1]], "several labels for 4 of 4 images"),
    ],
)
def test_lists_of_labels_with_nothing_in_them_are_counted(labels, said):
    rows = {"image": [picture(k) for k in range(4)], "label": labels}
    given = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image())
    with pytest.raises(DataError, match=said):
        in_memory(given).open(0.25, 0)


def test_images_in_memory_keep_their_orientation(tmp_path, decoded):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    half = np.zeros((8, 8), dtype=np.uint8)
    half[:, 4:] = 255  # the right half is white; turned, the lower half is
    given = []
    for number in range(8):
        path = tmp_path / f"{number}.png"
        Image.fromarray(half).save(path, exif=exif)
        given.append(Image.open(path))
    source = in_memory((given, [0, 1] * 4)).open(0.25, 0)
    assert np.array_equal(decoded(source)[0][0, 0], half.T)
    looked = look_at(source, "error", silent)
    assert looked.survey.remarks["turned as the orientation tag says"] == 8


def test_a_table_beside_folders_of_splits_keeps_them(tmp_path, decoded):
    write(tmp_path / "train", range(9))
    write(tmp_path / "test", range(9, 15))
    table(tmp_path / "l.csv", [f"{k:03d}.png,{A_B[k]}" for k in range(15)])
    source = opened(tmp_path)
    assert pairs(source, decoded) == [sub(range(9)), sub(range(9, 15))]
    assert "as the folders of the images say: train (9), test (6)" in decisions(source, "splits")
    assert "folders would do too: ant, bee, cat" in decisions(source, "classes")


def test_a_table_without_names_of_columns_is_refused(tmp_path):
    loose(tmp_path, range(6))
    path = table(tmp_path / "l.csv", rows(range(1, 6)), "0.png,a")
    with pytest.raises(DataError, match=r"'0.png' is no name of a column; the first row names"):
        opened(path)


def test_images_beside_a_file_of_rows_are_counted(tmp_path):
    hub_table(range(12)).to_parquet(tmp_path / "data.parquet")
    loose(tmp_path / "assets", range(2))
    table(tmp_path / "notes.csv", ["a,1"], "word,count")
    text = "3 files are not read: 0.png, 1.png, notes.csv"
    assert text in decisions(opened(tmp_path), "files")


def test_tables_of_the_library_may_lie_in_folders_of_splits(tmp_path, decoded):
    for split, numbers in (("train", range(8)), ("test", range(8, 12))):
        loose(tmp_path / split, numbers)
        table(tmp_path / split / "metadata.csv", rows(numbers), "file_name,label")
    source = opened(tmp_path)
    assert pairs(source, decoded) == [sub(range(8)), sub(range(8, 12))]
    assert not decisions(source, "files")


def test_a_zip_of_images_with_a_table_is_read(tmp_path, decoded, monkeypatch):
    monkeypatch.setenv("FL_SPLIT_CACHE", str(tmp_path / "cache"))
    loose(tmp_path / "d" / "images", range(12))
    table(tmp_path / "d" / "labels.csv", [f"images/{row}" for row in rows(range(12))])
    archive = shutil.make_archive(str(tmp_path / "packed"), "zip", tmp_path / "d")
    assert both(opened(archive), decoded) == sub(range(12))


def test_links_to_nowhere_are_refused_or_named(tmp_path, decoded):
    write(tmp_path, range(12))
    (tmp_path / "labels.csv").symlink_to(tmp_path / "gone")
    source = opened(tmp_path)
    assert both(source, decoded) == truth(range(12))
    assert "not read: labels.csv" in decisions(source, "files")
    (tmp_path / "metadata.csv").symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"cannot read .*metadata.csv': No such file"):
        opened(tmp_path)
