"""A model of your own: stages one after the other, cut after the second.

python examples/own_model.py
"""

from torch import nn

import fl_split as fs


def small_cnn(image_size: int, channels: int, num_classes: int) -> nn.Module:
    """Return stages by name; their weights are drawn from the experiment's seed."""
    side = image_size // 2
    model = nn.Sequential()
    model.add_module("conv1", nn.Sequential(nn.Conv2d(channels, 8, 3, padding=1), nn.ReLU()))
    model.add_module("conv2", nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.MaxPool2d(2)))
    model.add_module("classify", nn.Sequential(nn.Flatten(), nn.Linear(8 * side**2, num_classes)))
    return model


if __name__ == "__main__":
    run = fs.run(model=small_cnn, cut="conv2", clients=20, rounds=3, engine="inline()")
    print(run.rounds[["round", "accuracy", "payload_bytes_up"]])
    print(run.model)
