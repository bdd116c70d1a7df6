import itertools

import pytest
import torch

from robustgen.classifiers.networks import ACTIVATIONS, NORMS, ResNet
from robustgen.errors import UserError


@pytest.mark.parametrize(("norm", "activation"), list(itertools.product(NORMS, ACTIVATIONS)))
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 32, 32), (1, 7, 9)])
def test_every_variant_maps_pictures_to_outputs(norm, activation, shape):
    net = ResNet(7, shape, width=8, blocks=(1, 2), norm=norm, activation=activation, pool=2)
    out = net(torch.rand(3, *shape))
    assert out.shape == (3, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


def test_rows_do_not_see_each_other_in_evaluation():
    for norm in NORMS:
        net = ResNet(5, (1, 8, 8), width=8, norm=norm).eval().double()
        x = torch.rand(4, 1, 8, 8).double()
        torch.testing.assert_close(net(x)[:1], net(x[:1]))


def test_blocks_start_as_the_identity():
    net = ResNet(5, (1, 8, 8), width=8, blocks=(3,))
    x = torch.rand(2, 8, 8, 8)
    assert torch.equal(net.features[2](x), x)


def test_the_box_is_centred():
    net = ResNet(5, (1, 8, 8), width=8)
    seen = []
    net.features.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    net(torch.tensor([0.0, 0.5, 1.0]).view(3, 1, 1, 1).expand(3, 1, 8, 8))
    assert seen[0][:, 0, 0, 0].tolist() == [-1, 0, 1]


def test_unknown_layers_are_explained():
    with pytest.raises(UserError, match="unknown activation") as error:
        ResNet(5, (1, 8, 8), activation="tanh")
    assert "relu, gelu, silu" in str(error.value)


def test_parameters_by_hand():
    net = ResNet(10, (1, 8, 8), width=4, blocks=(1,), pool=2)
    stem, block, head = 4 * 9 + 4, 2 * (4 * 4 * 9 + 4), 16 * 10 + 10
    assert sum(p.numel() for p in net.parameters()) == stem + block + head
