import math

import numpy as np
import pytest
import torch

from fl_split.payload import DTYPES, Payload, pack_bits, unpack_bits


def test_bytes_are_header_plus_data_counted_by_hand():
    payload = Payload(
        {"tokens": torch.zeros(2, 3, 5)}, {"labels": torch.zeros(2, dtype=torch.uint8)}
    )
    header = 1 + (1 + 1 + 6 + 1 + 3 * 4) + (1 + 1 + 6 + 1 + 1 * 4)
    assert payload.nbytes == len(payload.to_bytes()) == header + 2 * 3 * 5 * 4 + 2


@pytest.mark.parametrize("dtype", [*DTYPES, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3,), (2, 0, 4), (1, 2, 3, 4)])
def test_what_is_read_is_what_was_written(dtype, shape):
    tensor = (torch.arange(24)[: max(1, torch.Size(shape).numel())] % 2).to(dtype)
    tensor = tensor[: torch.Size(shape).numel()].reshape(shape)
    data = Payload({"a": torch.randn(3)}, {"odd": torch.zeros(1, dtype=torch.uint8), "b": tensor})
    back = Payload.from_bytes(data.to_bytes())
    assert torch.equal(back.carried["a"], data.carried["a"])
    assert torch.equal(back.side["b"], tensor)
    assert back.side["b"].dtype == dtype


@pytest.mark.parametrize(
    "spoil", [lambda d: d[:-1], lambda d: d + b"x", lambda d: b"", lambda d: b"\xff" * 40]
)
def test_spoilt_bytes_are_refused(spoil):
    data = Payload({"a": torch.randn(3)}).to_bytes()
    with pytest.raises(ValueError, match="not a payload"):
        Payload.from_bytes(spoil(data))


def test_whole_numbers_take_the_bits_of_the_largest():
    numbers = torch.tensor([5, 0, 7, 1, 2])  # three bits each: 15 bits, 2 bytes
    header = 1 + (1 + 1 + 1 + 1 + 4)
    data = Payload({}, {"n": numbers}).to_bytes()
    assert len(data) == header + 2
    # 5 | 0 << 3 | 7 << 6 | 1 << 9 | 2 << 12 = 9157, little end first
    assert int.from_bytes(data[-2:], "little") == 5 + (7 << 6) + (1 << 9) + (2 << 12)
    assert Payload.from_bytes(data).side["n"].tolist() == [5, 0, 7, 1, 2]
    flags = Payload({}, {"n": torch.tensor([True, False, True] * 3)})
    assert flags.nbytes == header + 2
    assert Payload.from_bytes(flags.to_bytes()).side["n"].tolist() == [True, False, True] * 3
    negative = Payload({}, {"n": torch.tensor([-1, 3])})
    assert negative.nbytes == header + 16
    assert Payload.from_bytes(negative.to_bytes()).side["n"].tolist() == [-1, 3]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 17, 31, 40, 62])
@pytest.mark.parametrize("count", [1, 2, 7, 8, 100])
def test_any_number_of_bits_survives(bits, count):
    draw = np.random.default_rng(bits * count)
    numbers = draw.integers(0, 2**bits, count, dtype=np.int64)
    packed = pack_bits(numbers, bits)
    assert len(packed) == math.ceil(bits * count / 8)
    whole = sum(int(number) << (bits * place) for place, number in enumerate(numbers))
    assert int.from_bytes(packed.tobytes(), "little") == whole
    assert unpack_bits(packed, bits, count).tolist() == numbers.tolist()
