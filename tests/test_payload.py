import pytest
import torch

from fl_split.payload import DTYPES, Payload, smallest


def test_bytes_are_header_plus_data_counted_by_hand():
    payload = Payload(
        {"tokens": torch.zeros(2, 3, 5)}, {"labels": torch.zeros(2, dtype=torch.uint8)}
    )
    header = 1 + (1 + 1 + 6 + 1 + 3 * 4) + (1 + 1 + 6 + 1 + 1 * 4)
    assert payload.nbytes == len(payload.to_bytes()) == header + 2 * 3 * 5 * 4 + 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1, 2, 3, 4)])
def test_what_is_read_is_what_was_written(dtype, shape):
    tensor = (torch.arange(24)[: max(1, torch.Size(shape).numel())] % 2).to(dtype)
    tensor = tensor[: torch.Size(shape).numel()].reshape(shape)
    data = Payload({"a": torch.randn(3)}, {"odd": torch.zeros(1, dtype=torch.uint8), "b": tensor})
    back = Payload.from_bytes(data.to_bytes())
    assert torch.equal(back.values["a"], data.values["a"])
    assert torch.equal(back.side["b"], tensor)
    assert back.side["b"].dtype == dtype


@pytest.mark.parametrize(
    "spoil", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"", lambda d: b"\xff" * 40]
)
def test_spoilt_bytes_are_refused(spoil):
    data = Payload({"a": torch.randn(3)}).to_bytes()
    with pytest.raises(ValueError, match="not a payload"):
        Payload.from_bytes(spoil(data))


@pytest.mark.parametrize(
    ("top", "dtype"),
    [(255, torch.uint8), (256, torch.int16), (32768, torch.int32), (2**31, torch.int64)],
)
def test_integers_take_the_smallest_type_that_holds_them(top, dtype):
    assert smallest(torch.tensor([0, top])).dtype == dtype
    assert smallest(torch.tensor([0, top])).tolist() == [0, top]
