"""Checks that every installed attack must pass, whoever wrote it; then those of the built-ins."""

import dataclasses
import math

import pytest
import torch
from support.classifiers import exact_box_correct, exact_radius, linear, network

from lipbench.adversarial.judge import judge, judge_epsilons, judge_networks
from lipbench.adversary import Attack
from lipbench.networks.network_stack import Networks
from lipbench.norm import Norm
from lipbench.registry import PluginError, is_family, load, names, resolve, variants
from lipbench.threat import Threat

GROUP = "lipbench.attacks"
SHAPES = [(64,), (1, 8, 8)]


def installed():
    """Return the full name of every attack that can be used here."""
    for name in names(GROUP):
        try:
            plugin = load(GROUP, name, Attack)
            known = variants(GROUP, name, plugin) if is_family(plugin) else None
        except PluginError:
            continue
        yield from [name] if known is None else [f"{name}:{variant}" for variant in known]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name, **options):
    plugin, fixed = resolve(GROUP, name, Attack)
    return plugin(**fixed, **options)


def the_threat(attack, epsilon, samples, domain=(0.0, 1.0)):
    norm = min(attack.norms)
    return Threat(norm=norm, epsilon=torch.full((samples,), epsilon), domain=domain)


@pytest.fixture(name="attack", params=installed())
def _attack(request):
    return make(request.param)


@pytest.fixture(name="problem", params=SHAPES, ids=str)
def _problem(request):
    net = network()
    inputs = torch.rand(30, *request.param, generator=generator())
    net.eval()
    labels = net(inputs).argmax(dim=1)
    labels[0] = (labels[0] + 1) % 4
    return net, inputs, labels


def test_attack_is_a_frozen_value_that_names_its_source(attack):
    assert attack.__dataclass_params__.frozen
    assert attack == dataclasses.replace(attack)
    assert "Source:" in type(attack).__doc__
    assert attack.cost > 0


def test_result_lies_in_ball_and_box_and_is_misclassified(attack, problem):
    net, inputs, labels = problem
    epsilon = {2: 1.0, math.inf: 0.1, 1: 3.0}[min(attack.norms)]
    threat = the_threat(attack, epsilon, 30)
    result = judge(attack, net, inputs, labels, threat, generator())
    assert result.success[1:].any()
    distance = threat.norm.length(result.inputs.double() - inputs.double())
    assert (distance <= threat.epsilon.double()).all()
    assert torch.equal(distance[result.success], result.distance[result.success])
    assert result.inputs.min() >= 0
    assert result.inputs.max() <= 1
    assert torch.equal(result.success, net(result.inputs).argmax(dim=1) != labels)
    assert (result.queries[1:] > 0).all()
    assert result.queries[0] == 0


def test_epsilon_zero_gives_the_clean_accuracy(attack, problem):
    net, inputs, labels = problem
    result = judge(attack, net, inputs, labels, the_threat(attack, 0.0, 30), generator())
    assert pytest.approx(result.accuracy) == 29 / 30
    assert torch.equal(inputs, result.inputs)


def test_same_seed_gives_the_same_result(attack, problem):
    net, inputs, labels = problem
    threat = the_threat(attack, 0.1, 30)
    torch.manual_seed(0)
    first = judge(attack, net, inputs, labels, threat, generator())
    torch.manual_seed(1)
    second = judge(attack, net, inputs, labels, threat, generator())
    assert torch.equal(first.inputs, second.inputs)
    assert torch.equal(first.queries, second.queries)


def test_attack_leaves_no_trace(attack, problem):
    """Parameters, their gradients, buffers, modes, inputs and the global generator stay."""
    net, inputs, labels = problem
    net.train()
    net[2].eval()
    clean, random_state = inputs.clone(), torch.get_rng_state()
    state = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.modules()]
    judge(attack, net, inputs, labels, the_threat(attack, 0.1, 30), generator())
    assert torch.equal(clean, inputs)
    assert not inputs.requires_grad
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in net.parameters())
    assert modes == [module.training for module in net.modules()]
    assert torch.equal(random_state, torch.get_rng_state())


def accuracy(attack, model, inputs, labels, norm, epsilon, domain):
    threat = Threat(norm=norm, epsilon=torch.full((len(inputs),), epsilon), domain=domain)
    return judge(attack, model, inputs, labels, threat, generator()).accuracy


@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("norm", [Norm(2), Norm(math.inf)])
@pytest.mark.parametrize("dimensions", [3, 50])
@pytest.mark.parametrize("classes", [2, 5])
def test_pgd_finds_the_exact_robust_accuracy_of_linear_classifiers(
    classes, dimensions, norm, scale
):
    weight, bias, inputs, labels = linear(classes, dimensions, 400)
    radius = exact_radius(weight, bias, inputs, labels, norm)
    for quantile in (0.3, 0.7):
        # Between two samples: on a sample's own radius the verdict would be a matter of rounding.
        epsilon = torch.quantile(radius, quantile, interpolation="midpoint").item()
        exact = (radius > epsilon).double().mean().item()
        attacked = accuracy(
            make("pgd"),
            lambda x: scale * (x @ weight.T + bias),
            inputs,
            labels,
            norm,
            epsilon,
            None,
        )
        assert exact <= attacked <= exact + 0.005


@pytest.mark.parametrize("scale", [1, 100])
@pytest.mark.parametrize("classes", [2, 5])
def test_pgd_finds_the_exact_robust_accuracy_in_the_box(classes, scale):
    weight, bias, inputs, labels = linear(classes, 20, 400)
    inputs = inputs.round(decimals=1).clamp(0, 1)
    labels = (inputs @ weight.T + bias).argmax(dim=1)
    for epsilon in (0.03, 0.1, 0.25):
        exact = exact_box_correct(weight, bias, inputs, labels, epsilon).double().mean().item()
        attacked = accuracy(
            make("pgd"),
            lambda x: scale * (x @ weight.T + bias),
            inputs,
            labels,
            Norm(math.inf),
            epsilon,
            (0.0, 1.0),
        )
        assert exact <= attacked <= exact + 0.005


@pytest.mark.parametrize("loss", ["margin", "cross_entropy"])
@pytest.mark.parametrize("norm", [Norm(2), Norm(math.inf)])
def test_scale_of_the_logits_does_not_change_pgd(norm, loss):
    net, attack = network().eval().double(), make("pgd", losses=(loss,))
    inputs = torch.rand(100, 64, generator=generator(), dtype=torch.float64)
    labels, epsilon = net(inputs).argmax(dim=1), {2: 0.25, math.inf: 0.04}[norm]
    plain, scaled = (
        accuracy(attack, lambda x, c=c: c * net(x), inputs, labels, norm, epsilon, (0.0, 1.0))
        for c in (1, 100)
    )
    assert 0 < plain < 1
    assert plain == scaled


def test_scale_of_the_logits_does_not_stop_pgd_l2_sign():
    """Cross entropy itself has no gradient left where logits are this far apart."""
    weight, bias, inputs, labels = linear(2, 20, 200)
    plain, scaled = (
        accuracy(
            make("pgd_l2_sign", steps=20),
            lambda x, c=c: c * (x @ weight.T + bias),
            inputs,
            labels,
            Norm(2),
            0.5,
            None,
        )
        for c in (1, 1e6)
    )
    assert plain < 1
    assert plain == scaled


def test_more_losses_and_starts_are_never_weaker_for_any_sample():
    net = network().eval()
    inputs = torch.rand(200, 64, generator=generator())
    labels = net(inputs).argmax(dim=1)
    threat = Threat(norm=Norm(2), epsilon=torch.full((200,), 0.3))
    few, many = (
        judge(make("pgd", **options), net, inputs, labels, threat, generator()).success
        for options in ({"losses": ("margin",), "starts": 1}, {})
    )
    assert (many | ~few).all()


def test_pgd_respects_an_epsilon_for_each_sample():
    weight, bias, inputs, labels = linear(2, 10, 300)
    radius = exact_radius(weight, bias, inputs, labels, Norm(2))
    epsilon = radius * (0.9 + 0.2 * torch.rand(300, generator=generator(), dtype=torch.float64))
    threat = Threat(norm=Norm(2), epsilon=epsilon, domain=None)
    result = judge(make("pgd"), lambda x: x @ weight.T + bias, inputs, labels, threat, generator())
    clear = (epsilon / radius - 1).abs() > 1e-4
    assert torch.equal((epsilon > radius)[clear], result.success[clear])


@pytest.mark.parametrize(
    ("name", "option"),
    [
        ("pgd", {"steps": 0}),
        ("pgd", {"starts": 0}),
        ("pgd", {"rel_step": -1.0}),
        ("pgd", {"losses": ()}),
        ("pgd_l2_sign", {"steps": 0}),
        ("pgd_l2_sign", {"alpha": -1.0}),
    ],
)
def test_settings_that_attack_nothing_are_refused(name, option):
    with pytest.raises(ValueError, match=f"of {name} must be"):
        make(name, **option)


def test_sign_attack_equals_equation_14():
    """A literal transcription, on samples that stay unbroken: the last iterate."""
    net = network().eval().double()
    inputs = torch.rand(60, 64, generator=generator(), dtype=torch.float64)
    labels, epsilon, alpha = net(inputs).argmax(dim=1), 0.2, 0.01
    threat = Threat(norm=Norm(2), epsilon=torch.full((60,), epsilon), domain=None)
    attack = make("pgd_l2_sign", steps=5, alpha=alpha)
    proposed = attack.propose(net, inputs, labels, threat, generator())
    cross_entropy = torch.nn.CrossEntropyLoss(reduction="sum")
    x, visited = inputs, []
    for _ in range(6):
        logits = net(x)
        label_logit = logits.gather(1, labels[:, None])
        wrong = logits.scatter(1, labels[:, None], -math.inf).max(dim=1, keepdim=True).values
        visited.append((wrong - label_logit, x))
        gradient = torch.func.grad(lambda p: cross_entropy(net(p), labels))(x)
        offset = x + alpha * gradient.sign() - inputs
        x = inputs + offset * (epsilon / offset.norm(dim=1, keepdim=True)).clamp(max=1)
    margins = torch.cat([margin for margin, _ in visited], dim=1)
    safe = (margins <= 0).all(dim=1)
    assert safe.sum() > 10
    torch.testing.assert_close(proposed[safe], visited[-1][1][safe])


def test_hundred_sign_steps_are_never_weaker_than_ten():
    net = network().eval()
    inputs = torch.rand(200, 64, generator=generator())
    labels = net(inputs).argmax(dim=1)
    threat = Threat(norm=Norm(2), epsilon=torch.full((200,), 0.4))
    ten, hundred = (
        judge(make("pgd_l2_sign", steps=n), net, inputs, labels, threat, generator()).success
        for n in (10, 100)
    )
    assert ten.any()
    assert (hundred | ~ten).all()


@pytest.mark.parametrize("seed", range(3))
def test_gradient_steps_are_at_least_as_strong_as_sign_steps_on_average(seed):
    net = network(seed).eval()
    inputs = torch.rand(200, 64, generator=generator(seed))
    labels = net(inputs).argmax(dim=1)
    sign, gradient = (
        [
            r.accuracy
            for r in judge_epsilons(
                make(name), net, inputs, labels, Norm(2), (0.15, 0.3, 0.6), (0.0, 1.0), generator()
            )
        ]
        for name in ("pgd_l2_sign", "pgd")
    )
    assert sum(gradient) <= sum(sign)


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        (name, norm)
        for name in installed()
        if make(name).samplewise
        for norm in sorted(make(name).norms)
    ],
)
def test_a_samplewise_attack_does_to_many_networks_what_it_does_to_each(name, norm):
    """Whatever shares the batch: networks, epsilons, and however many samples at a time."""
    attack = make(name)
    nets = [network(seed).double().eval() for seed in range(3)]
    inputs = torch.rand(20, 64, generator=generator(), dtype=torch.float64)
    labels = nets[0](inputs).argmax(dim=1)
    epsilons = {2: [0.4, 0.1, 0.2], math.inf: [0.04, 0.01, 0.02]}[norm]

    def rngs():
        return [generator(seed) for seed in range(3)]

    arguments = inputs, labels, norm, epsilons, None
    together = judge_networks(attack, Networks.of(nets), *arguments, rngs(), batch_size=150)
    few = judge_networks(attack, Networks.of(nets), *arguments, rngs(), batch_size=7)
    for net, rng, *stacked in zip(nets, rngs(), together, few, strict=True):
        alone = judge_epsilons(attack, net, *arguments, rng)
        assert 0 < sum(result.accuracy for result in alone) < 3
        for results in stacked:
            for result, expected in zip(results, alone, strict=True):
                assert torch.equal(result.success, expected.success)
                torch.testing.assert_close(result.inputs, expected.inputs)
                torch.testing.assert_close(result.distance, expected.distance)
