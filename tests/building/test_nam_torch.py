"""Neural activation maps against PyTorch's on the same random weights."""

import jax
import numpy as np
import pytest
from encoders import random_encoder

from corm_jax.masks.building.encoder import activation_maps
from corm_jax.torch_weights import to_torch

torch = pytest.importorskip("torch")
functional = torch.nn.functional

EPSILON = 1e-5


class TorchResNet:
    """The forward pass of a residual network of basic blocks, written down from the paper."""

    def __init__(self, state: dict[str, np.ndarray]) -> None:
        self.state = {key: torch.from_numpy(np.array(value)) for key, value in state.items()}

    def norm(self, x: "torch.Tensor", name: str) -> "torch.Tensor":
        keys = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(self.state[f"{name}.{key}"] for key in keys), eps=EPSILON)

    def conv(self, x: "torch.Tensor", name: str, stride: int) -> "torch.Tensor":
        weight = self.state[f"{name}.weight"]
        return functional.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)

    def block(self, x: "torch.Tensor", name: str, stride: int) -> "torch.Tensor":
        y = functional.relu(self.norm(self.conv(x, f"{name}.conv1", stride), f"{name}.bn1"))
        y = self.norm(self.conv(y, f"{name}.conv2", 1), f"{name}.bn2")
        if f"{name}.downsample.0.weight" in self.state:
            x = self.norm(self.conv(x, f"{name}.downsample.0", stride), f"{name}.downsample.1")
        return functional.relu(x + y)

    def last_map(self, images: np.ndarray) -> "torch.Tensor":
        mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
        x = ((torch.from_numpy(images) - mean) / std).permute(0, 3, 1, 2)
        x = functional.relu(self.norm(self.conv(x, "conv1", 2), "bn1"))
        for stage in range(1, 4):
            x = self.block(x, f"layer{stage}.0", 1 if stage == 1 else 2)
        return x


def test_maps_match_those_of_pytorch_within_1e_4() -> None:
    encoder = random_encoder("resnet8_nano", 48, ("a", "b"))
    images = np.array(jax.random.uniform(jax.random.key(5), (4, 48, 48, 3)))
    _, activations, maps = encoder.encode(encoder.variables, images)
    found = np.asarray(activation_maps(maps))
    with torch.no_grad():
        other = TorchResNet(to_torch(encoder.model, encoder.variables)).last_map(images)
        means = other.mean(dim=(2, 3))
        maximum = other.amax(dim=(2, 3), keepdim=True)
        expected = torch.where(maximum > 0, other / maximum, 0.0).permute(0, 2, 3, 1)
    assert expected.shape == found.shape == (4, 6, 6, 64)
    assert (expected.numpy().max(axis=(1, 2)) == 1).mean() > 0.5  # most channels are active
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(activations, means.numpy(), rtol=1e-4, atol=1e-4)
