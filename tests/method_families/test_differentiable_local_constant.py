"""What chains can do in balls, against samples of them and against the source in plain torch."""

import pytest
import torch
from support.matrices import matrix_of
from support.training import a_model, a_net
from torch import nn

from lipbench.layers.normalise import Normalise
from lipbench.method_families import differentiable_constant, differentiable_local_constant

RADIUS = 0.1


def dense(activation, seed=0):
    model = a_model(widths=(7, 6), activation="relu")
    module = model.build((5,), 4, torch.Generator().manual_seed(seed))
    layers = [activation() if isinstance(layer, nn.ReLU) else layer for layer in module]
    return nn.Sequential(*layers)


def convolutional():
    torch.manual_seed(0)
    return nn.Sequential(
        *(Normalise([0.5], [0.25]), nn.Conv2d(1, 3, 3, stride=2, padding=1), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(3, 4, 2, bias=False), nn.MaxPool2d(2, 1), nn.ReLU(), nn.Flatten()),
        *(nn.Linear(4, 6), nn.Linear(6, 5), nn.Hardtanh(0.0, 0.5), nn.Linear(5, 4)),
    )


def early():
    # What reads the input itself differs from sample to sample.
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.MaxPool2d(2, 1), nn.Hardtanh(0.0, 0.7), nn.Flatten()),
        *(nn.Linear(9, 6), nn.Sigmoid(), nn.Linear(6, 4)),
    )


CHAINS = {
    "early": (early, (1, 4, 4)),
    "relu": (lambda: dense(nn.ReLU), (5,)),
    "sigmoid": (lambda: dense(nn.Sigmoid), (5,)),
    "clipped": (lambda: dense(lambda: nn.Hardtanh(0.0, 0.3)), (5,)),
    "leaky": (lambda: dense(lambda: nn.LeakyReLU(0.2)), (5,)),
    "convolutional": (convolutional, (1, 6, 6)),
}


def a_chain(name, scale=3.0):
    make, shape = CHAINS[name]
    net = a_net(make().double().eval(), shape)
    params = {key: scale * value if value.ndim > 1 else value for key, value in net.params.items()}
    trunk, last = differentiable_constant.split(net.with_params(params).steps)
    inputs = torch.rand(6, *shape, generator=torch.Generator().manual_seed(1)).double()
    return trunk, last, inputs


def near(trunk, inputs, radius=RADIUS, iterations=200):
    vectors = differentiable_local_constant.start(
        trunk, len(inputs), torch.Generator().manual_seed(2)
    )
    return differentiable_local_constant.local_constant(trunk, inputs, radius, vectors, iterations)


def moved(inputs, radius, count=300):
    # Points of the balls, half of them on their spheres.
    rng = torch.Generator().manual_seed(3)
    offset = torch.randn(count, *inputs.shape, generator=rng, dtype=torch.float64)
    length = offset.flatten(2).norm(dim=2)
    share = torch.rand(length.shape, generator=rng, dtype=torch.float64).clamp_min(0.5)
    share[::2] = 1.0
    return inputs + offset * (radius * share / length).reshape(*length.shape, *[1] * inputs[0].ndim)


@pytest.mark.parametrize("name", CHAINS)
def test_no_point_of_a_ball_does_more(name):
    trunk, last, inputs = a_chain(name)
    found, _ = near(trunk, inputs)
    values = trunk(inputs)
    torch.testing.assert_close(found.values, values)
    own = last(values).argmax(dim=1)
    rises = found.rises(last, own)
    largest = torch.zeros(())
    for points in moved(inputs, RADIUS):
        there = trunk(points)
        assert bool((there >= found.lo - 1e-9).all())
        assert bool((there <= found.hi + 1e-9).all())
        move = (there - values).abs()
        assert bool((move <= found.roots * found.reach.unsqueeze(1) + 1e-9).all())
        parts = torch.where(found.roots > 0, move / found.roots.clamp_min(1e-12), 0.0)
        assert bool((parts.norm(dim=1) <= found.reach * (1 + 1e-3) + 1e-9).all())
        gain = last(there) - last(values)
        gain = gain - gain.take_along_dim(own.unsqueeze(1), dim=1)
        assert bool((gain <= rises * (1 + 1e-3) + 1e-9).all())
        largest = torch.maximum(largest, (gain / rises.clamp_min(1e-9)).max())
    assert float(largest) > 0.1


@pytest.mark.parametrize("name", CHAINS)
def test_samples_know_nothing_of_each_other(name):
    trunk, _, inputs = a_chain(name)
    vectors = differentiable_local_constant.start(
        trunk, len(inputs), torch.Generator().manual_seed(2)
    )
    whole, _ = differentiable_local_constant.local_constant(trunk, inputs, RADIUS, vectors, 3)
    own = {key: value[4:5] for key, value in vectors.items()}
    alone, _ = differentiable_local_constant.local_constant(trunk, inputs[4:5], RADIUS, own, 3)
    for field in ("values", "lo", "hi", "roots", "reach"):
        torch.testing.assert_close(getattr(whole, field)[4:5], getattr(alone, field))


def literal(weights, biases, x, radius):
    # Section 3 of the paper for one sample and ReLUs, all norms exact, no vectors.
    low, high, reach = x - radius, x + radius, radius
    mask = torch.ones(len(x), dtype=torch.float64)
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        z = weight @ x + bias
        ball = reach * (weight * mask).square().sum(dim=1).sqrt()
        up = weight.clamp_min(0) @ high + weight.clamp_max(0) @ low + bias
        down = weight.clamp_min(0) @ low + weight.clamp_max(0) @ high + bias
        up, down = torch.minimum(up, z + ball), torch.maximum(down, z - ball)
        on = (up > 0).double()
        reach = reach * torch.linalg.matrix_norm(on.diag() @ weight @ mask.diag(), ord=2)
        mask, low, high, x = on, down.clamp_min(0), up.clamp_min(0), z.clamp_min(0)
    last, j = weights[-1], int((weights[-1] @ x + biases[-1]).argmax())
    rises = []
    for i in range(len(last)):
        row = last[i] - last[j]
        by_ball = reach * ((row * mask).square().sum() + 1e-30).sqrt()
        ends = zip(row, high, low, x, strict=True)
        gains = [max(r * (up - v), r * (down - v)) for r, up, down, v in ends]
        rises.append(torch.minimum(by_ball, torch.stack(gains).sum()))
    return torch.stack(rises), mask, reach


def test_rises_and_their_slopes_are_those_of_the_source():
    trunk, last, inputs = a_chain("relu")
    layers = [*trunk.layers, last]
    names = [layer.weight_name for layer in layers]
    net = a_net(CHAINS["relu"][0]().double(), (5,))
    params = {**net.params, **{layer.weight_name: layer.weight for layer in layers}}
    vectors = differentiable_local_constant.start(trunk, 6, torch.Generator().manual_seed(2))

    def ours(params):
        trunk, last = differentiable_constant.split(net.with_params(params).steps)
        found, _ = differentiable_local_constant.local_constant(trunk, inputs, RADIUS, vectors, 300)
        return found.rises(last, last(found.values).argmax(dim=1))

    def theirs(params):
        weights, biases = (
            [params[n.replace("weight", k)] for n in names] for k in ("weight", "bias")
        )
        return torch.stack([literal(weights, biases, x, RADIUS)[0] for x in inputs])

    torch.testing.assert_close(ours(params), theirs(params), rtol=1e-6, atol=1e-9)
    one, other = (torch.func.grad(lambda p, f=f: f(p).sum())(params) for f in (ours, theirs))
    for name, slope in one.items():
        torch.testing.assert_close(slope, other[name], rtol=1e-3, atol=1e-4)


def test_neurons_that_are_off_in_a_ball_do_not_count():
    trunk, last, inputs = a_chain("relu")
    weights = [layer.weight for layer in (*trunk.layers, last)]
    biases = [layer.bias for layer in (*trunk.layers, last)]
    found, _ = near(trunk, inputs)
    for row, x in enumerate(inputs):
        _, mask, reach = literal(weights, biases, x, RADIUS)
        assert torch.equal(found.roots[row], mask)
        assert float(found.reach[row]) == pytest.approx(float(reach), rel=1e-6)
    assert 0 < float(found.roots.mean()) < 1
    vectors = differentiable_constant.start(trunk, torch.Generator().manual_seed(0))
    everywhere = RADIUS * float(differentiable_constant.constant(trunk, vectors, 100)[0])
    assert float(found.reach.max()) < everywhere * 0.999
    # A huge ball knows of no neuron that is off.
    huge, _ = near(trunk, inputs, radius=1e3)
    assert bool((huge.roots == 1).all())
    assert float(huge.reach[0] / 1e3) == pytest.approx(everywhere / RADIUS, rel=1e-3)


def test_a_convolution_is_the_dense_layer_that_it_is():
    torch.manual_seed(0)
    conv, last = nn.Conv2d(2, 3, 3, stride=2, padding=1).double(), nn.Linear(12, 4).double()
    as_dense = nn.Linear(32, 12).double()
    matrix = matrix_of(lambda x: nn.functional.conv2d(x, conv.weight, None, 2, 1), (2, 4, 4))
    with torch.no_grad():
        as_dense.weight.copy_(matrix)
        as_dense.bias.copy_(conv.bias.repeat_interleave(4))
    one = nn.Sequential(conv, nn.ReLU(), nn.Flatten(), last)
    other = nn.Sequential(nn.Flatten(), as_dense, nn.ReLU(), last)
    inputs = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    found = [
        near(differentiable_constant.split(a_net(each, (2, 4, 4)).steps)[0], inputs)[0]
        for each in (one, other)
    ]
    for field in ("values", "lo", "hi", "roots", "reach"):
        torch.testing.assert_close(*(getattr(each, field) for each in found), rtol=1e-5, atol=1e-9)


def test_an_entry_that_many_windows_see_moves_all_of_them():
    """A peak in the middle of 3x3 pixels is the maximum of four windows."""
    module = nn.Sequential(nn.MaxPool2d(2, 1), nn.Flatten(), nn.Linear(4, 2))
    trunk, _ = differentiable_constant.split(a_net(module, (1, 3, 3)).steps)
    image = torch.zeros(1, 1, 3, 3)
    image[..., 1, 1] = 1.0
    found, _ = near(trunk, image)
    moved_on = trunk(image * (1 + RADIUS)) - trunk(image)
    assert float(moved_on.norm()) == pytest.approx(2 * RADIUS, rel=1e-5)
    assert float(found.reach) == pytest.approx(2 * RADIUS, rel=1e-5)


def test_vectors_are_kept_for_each_sample():
    trunk, _, inputs = a_chain("relu")
    state = differentiable_local_constant.start(trunk, 10, torch.Generator().manual_seed(0))
    index = torch.tensor([7, 0, 3, 9, 1, 4])
    own = differentiable_local_constant.read(state, trunk, index)
    for name, value in own.items():
        assert torch.equal(value, state[name][index])
    sizes = []
    for _ in range(30):
        own = differentiable_local_constant.read(state, trunk, index)
        found, moved_on = differentiable_local_constant.local_constant(trunk, inputs, RADIUS, own)
        state = differentiable_local_constant.replaced(state, moved_on, index)
        sizes.append(found.reach)
    converged, _ = near(trunk, inputs)
    torch.testing.assert_close(sizes[-1], converged.reach, rtol=1e-3, atol=0)
    assert float((sizes[0] / converged.reach).min()) < 0.99
    first = differentiable_local_constant.start(trunk, 10, torch.Generator().manual_seed(0))
    for name, value in state.items():
        assert torch.equal(value[[2, 5, 6, 8]], first[name][[2, 5, 6, 8]])


def test_a_vector_finds_neurons_that_were_off_before():
    """All that is on in the first ball is off in the second, and the other way round."""
    layers = nn.Linear(1, 2).double(), nn.Linear(2, 2).double()
    with torch.no_grad():
        layers[0].weight.copy_(torch.tensor([[1.0], [-1.0]]))
        layers[0].bias.zero_()
        layers[1].weight.copy_(torch.eye(2))
    net = a_net(nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), nn.Linear(2, 2)), (1,))
    trunk, _ = differentiable_constant.split(
        net.with_params({k: v.double() for k, v in net.params.items()}).steps
    )
    vectors = differentiable_local_constant.start(trunk, 1, torch.Generator().manual_seed(0))
    for x in (1.0, -1.0):
        for _ in range(3):
            point = torch.tensor([[x]], dtype=torch.float64)
            found, vectors = differentiable_local_constant.local_constant(
                trunk, point, 0.5, vectors, 2
            )
        assert float(found.reach) == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [
        (nn.BatchNorm2d(1), r"'1' \(Scale\) has a rule only as a first step without weights"),
        (nn.Conv2d(1, 1, 3, padding=1, padding_mode="circular"), "pads with 'circular' entries"),
        (nn.GELU(), r"'1' \(Slope\) has no rule, for it is no fixed function that rises"),
        (nn.PReLU(), "no fixed function that rises"),
        (nn.AvgPool2d(2), r"'1' \(AveragePool\) has no local rule"),
    ],
)
def test_what_has_no_local_rule_has_a_reason(layer, reason):
    module = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), layer)
    found = differentiable_local_constant.why_not(differentiable_constant.read(module, (1, 4, 4)))
    assert found is not None
    with pytest.raises(ValueError, match=reason):
        raise ValueError(found)


@pytest.mark.parametrize("name", CHAINS)
def test_what_has_one_has_none(name):
    trunk, _, _ = a_chain(name)
    assert differentiable_local_constant.why_not(trunk) is None
