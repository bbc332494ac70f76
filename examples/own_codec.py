"""A codec of your own, in one file: only the signs of the smashed data and a scale are sent.

Run it as a script, or name it from anywhere:

    python examples/own_codec.py
    fl-split run quickstart plugins=examples/own_codec.py codec="own_codec:Signs"
    fl-split check "own_codec:Signs" --plugin examples/own_codec.py
"""

from dataclasses import dataclass

import torch

from fl_split.codecs import Codec
from fl_split.payload import Payload


@dataclass(frozen=True)
class Signs(Codec):
    """One bit for each number, and the mean size of each token: sign(x) * mean |x|."""

    def pack(self, payload: Payload, generator: torch.Generator) -> Payload:
        """Return eight signs to a byte, and sizes in fp32."""
        packed, side = {}, dict(payload.side)
        for name, value in payload.carried.items():
            bits = (value >= 0).flatten().to(torch.uint8)
            bits = torch.cat([bits, bits.new_zeros(-len(bits) % 8)]).view(-1, 8)
            powers = 2 ** torch.arange(8, dtype=torch.uint8)
            packed[name] = (bits * powers).sum(dim=1, dtype=torch.uint8)
            side[f"{name}.size"] = value.abs().mean(dim=-1, keepdim=True)
            side[f"{name}.shape"] = torch.tensor(value.shape)
        return Payload(packed, side)

    def unpack(self, packed: Payload) -> Payload:
        """Return sign times size."""
        values, side = {}, dict(packed.side)
        for name, byte in packed.carried.items():
            size, shape = side.pop(f"{name}.size"), side.pop(f"{name}.shape").tolist()
            bits = (byte[:, None] >> torch.arange(8)) & 1
            signs = 2.0 * bits.flatten()[: int(torch.tensor(shape).prod())].view(shape) - 1
            values[name] = signs * size
        return Payload(values, side)


if __name__ == "__main__":
    import fl_split as fs

    both = fs.compare(
        {"none": {}, "signs": {"codec": Signs()}}, clients=20, rounds=3, engine="inline()"
    )
    print(both.table[["run", "final_accuracy", "ratio"]])
