"""What is decided in silence elsewhere is said here: names of files, codes, other columns."""

import pandas as pd
import pytest

from simulations.data.images import DataError
from tests.test_candidates import A_B, loose, rows, sub, table
from tests.test_files import both, decisions, hub_table, opened, pairs, picture, truth
from tests.test_files import write_folder as write


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_which_files_are_which_split_is_said(tmp_path, decoded, suffix):
    names = {"train-00000": range(6), "train-00001": range(6, 12), "test-00000": range(12, 18)}
    for name, numbers in names.items():
        if suffix == "parquet":
            hub_table(numbers).to_parquet(tmp_path / f"{name}.parquet")
        else:
            hub_table(numbers).save_to_disk(tmp_path / "saved")
            (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / f"{name}.arrow")
            for file in (tmp_path / "saved").iterdir():
                file.unlink()
            (tmp_path / "saved").rmdir()
    source = opened(tmp_path)
    assert pairs(source, decoded) == [truth(range(12)), truth(range(12, 18))]
    said = decisions(source, "splits")
    assert f"test is test-00000.{suffix}; train is train-00000.{suffix}, train-00001." in said
    for file in tmp_path.glob("test*"):
        file.unlink()
    assert "as the names of files say" not in decisions(opened(tmp_path), "splits")


def test_which_tables_are_which_split_is_said(tmp_path, decoded):
    loose(tmp_path, range(12))
    for name, numbers in (("train", range(9)), ("val", range(9, 12))):
        table(tmp_path / f"{name}.csv", rows(numbers))
    source = opened(tmp_path)
    assert pairs(source, decoded) == [sub(range(9)), sub(range(9, 12))]
    assert "train is train.csv; validation is val.csv" in decisions(source, "splits")


def test_columns_that_are_not_used_are_counted_and_named(tmp_path):
    more = {f"c{k}": [k] * 12 for k in range(6)}
    many = hub_table(range(12))
    for name, values in more.items():
        many = many.add_column(name, values)
    many.to_parquet(tmp_path / "t.parquet")
    said = "6 are neither images nor labels: c0, c1, c2, c3, c4 and 1 more"
    assert decisions(opened(tmp_path / "t.parquet"), "columns") == said
    hub_table(range(12)).to_parquet(tmp_path / "t.parquet")
    assert not decisions(opened(tmp_path / "t.parquet"), "columns")


@pytest.mark.parametrize("kind", ["two tables", "two sheets", "the library's"])
def test_two_tables_that_contradict_each_other_are_refused(tmp_path, kind):
    """Image 3 is of class b in the table to train on, and of class a in that to test on."""
    loose(tmp_path, range(12))
    lines = {"train": rows(range(9)), "test": [*rows(range(9, 12)), "3.png,a", "4.png,"]}
    if kind == "two tables":
        for split, some in lines.items():
            table(tmp_path / f"{split}.csv", some)
        where = "'a' in test.csv and 'b' in train.csv"
    elif kind == "two sheets":
        with pd.ExcelWriter(tmp_path / "l.xlsx") as book:
            for split, some in lines.items():
                frame = pd.DataFrame([one.split(",") for one in some], columns=["file", "label"])
                frame.to_excel(book, sheet_name=split, index=False)
        where = "'b' in the train sheet and 'a' in the test sheet"
    else:
        for split, some in lines.items():
            for line in some:
                number = int(line.split(".")[0])
                (tmp_path / split).mkdir(exist_ok=True)
                picture(number).save(tmp_path / split / f"{number}.png")
            table(tmp_path / split / "metadata.csv", some, "file_name,label")
        (tmp_path / "test" / "3.png").unlink()
        (tmp_path / "test" / "3.png").symlink_to(tmp_path / "train" / "3.png")
        for number in range(12):
            (tmp_path / f"{number}.png").unlink()
        where = "'b' in the train split and 'a' in the test split"
    with pytest.raises(DataError) as error:
        opened(tmp_path)
    said = "1 images have one label in a table and another in the next; the first, '3.png', is "
    assert str(error.value).startswith(f"{said}{where}: leave one row for each image")


def test_tables_that_agree_are_no_contradiction_whatever_the_form_of_numbers(tmp_path, decoded):
    """With an empty cell the numbers of a column are read as floats."""
    loose(tmp_path, range(12))
    lines = [f"{k}.png,{k % 2}" for k in range(9)]
    table(tmp_path / "train.csv", lines)
    more = [f"{k}.png,{k % 2}" for k in range(9, 12)]
    table(tmp_path / "test.csv", [*more, "3.png,1", "4.png,"])
    source = opened(tmp_path, drop_missing="label")
    assert pairs(source, decoded)[1] == {9: "1", 10: "0", 11: "1", 3: "1"}
    assert "2 rows of test.csv, train.csv name an image that an earlier" in decisions(
        source, "files"
    )


CODES = ["01", "1", "+1", "10"]


@pytest.mark.parametrize("form", ["table", "pixels", "metadata.csv"])
def test_labels_with_zeros_in_front_are_no_numbers(tmp_path, decoded, form):
    wanted = {k: CODES[k % 4] for k in range(16)}
    if form == "pixels":
        header = ",".join(["label", *(f"p{k}" for k in range(16))])
        lines = [",".join([label, *[str(k)] * 16]) for k, label in wanted.items()]
        place = table(tmp_path / "l.csv", lines, header)
    else:
        loose(tmp_path, range(16))
        lines = [f"{k}.png,{label}" for k, label in wanted.items()]
        is_library = form == "metadata.csv"
        name, first = ("metadata.csv", "file_name") if is_library else ("l.csv", "file")
        table(tmp_path / name, lines, f"{first},label")
        place = tmp_path
    source = opened(place)
    assert both(source, decoded) == wanted
    said = decisions(source, "labels")
    assert "column 'label' is read as text, because of '01'" in said
    assert "classes '01' and '1' differ only by zeros in front" in said


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["0", "1", "10", "2"], ["0", "1", "2", "10"]),
        (["0.0", "1.0", "10.0", "2.0"], ["0", "1", "2", "10"]),
        (["-1", " 3", "1", "3"], ["-1", "1", "3"]),
        (["True", "False"], ["False", "True"]),
        (["2e5", "1e5", "3e5", "100000"], ["100000", "1e5", "2e5", "3e5"]),
    ],
)
def test_plain_numbers_stay_numbers_in_their_order(tmp_path, labels, names):
    loose(tmp_path, range(12))
    lines = [f"{k}.png,{labels[k % len(labels)]}" for k in range(12)]
    source = opened(table(tmp_path / "l.csv", lines))
    assert source.class_names == names
    is_text = "read as text" in decisions(source, "labels")
    assert is_text == ("2e5" in labels)


def test_a_quantity_in_a_table_is_still_refused(tmp_path):
    loose(tmp_path, range(12))
    path = table(tmp_path / "l.csv", [f"{k}.png,{k / 7e5}" for k in range(12)])
    with pytest.raises(DataError, match="that is a quantity, not a class"):
        opened(path)


@pytest.mark.parametrize("suffix", [".HEIC", ".heif", ".jxl"])
def test_images_that_pillow_does_not_read_are_counted_with_advice(tmp_path, decoded, suffix):
    kind = "JPEG XL" if suffix == ".jxl" else "HEIC"
    write(tmp_path / "d", range(12))
    for number in range(7):
        (tmp_path / "d" / "ant" / f"x{number}{suffix}").write_bytes(b"\0\0\0\x18ftypheic")
    (tmp_path / "d" / "notes.txt").touch()
    source = opened(tmp_path / "d")
    assert both(source, decoded) == truth(range(12))
    (told,) = [one for one in source.decisions if one.about == "images" and one.is_warning]
    said = f"7 images are {kind}, which Pillow does not read: x0{suffix}, x1{suffix}, "
    assert told.text.startswith(said) and "convert them to JPEG" in told.text
    assert "1 files are no images: notes.txt" in decisions(source, "files")


def test_a_folder_of_such_images_alone_says_so(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / f"{number}.heic").write_bytes(b"\0\0\0\x18ftypheic")
    with pytest.raises(
        DataError,
        match=r"no images in .*; it holds nothing else; 8 images are HEIC.*convert them to JPEG",
    ):
        opened(tmp_path)
    path = table(tmp_path / "l.csv", [f"a/{k}.heic,{A_B[k]}" for k in range(4)])
    for place in (path, tmp_path):
        with pytest.raises(DataError, match=r"8 images are HEIC, which Pillow does not read"):
            opened(place)
