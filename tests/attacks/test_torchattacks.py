import math

import pytest
import torch
from support.classifiers import linear, network

from lipbench.adversarial.judge import judge
from lipbench.adversary import Attack
from lipbench.norm import Norm
from lipbench.registry import load, resolve
from lipbench.threat import Threat

torchattacks = pytest.importorskip(
    "torchattacks", reason='the extra is not installed: pip install "lipbench[torchattacks]"'
)


def generator():
    return torch.Generator().manual_seed(0)


def make(variant, **options):
    return load("lipbench.attacks", "torchattacks", Attack)(variant=variant, **options)


def threat(samples, norm=math.inf, epsilon=0.1, domain=(0.0, 1.0)):
    return Threat(norm=Norm(norm), epsilon=torch.full((samples,), epsilon), domain=domain)


@pytest.fixture(name="problem")
def _problem():
    net = network().eval()
    inputs = torch.rand(40, 1, 8, 8, generator=generator())
    return net, inputs, net(inputs).argmax(dim=1)


@pytest.mark.parametrize("variant", ["CW", "AutoAttack", "pgd", ""])
def test_variants_that_cannot_be_trusted_are_not_offered(variant):
    with pytest.raises(ValueError, match="is not offered"):
        make(variant)


def test_variant_fixes_the_norms():
    assert frozenset({Norm(2)}) == make("PGDL2").norms
    assert frozenset({Norm(math.inf)}) == make("PGD").norms


def test_name_with_a_colon_finds_the_variant():
    plugin, fixed = resolve("lipbench.attacks", "torchattacks:PGD", Attack)
    assert make("PGD") == plugin(**fixed)


def test_result_is_that_of_the_library(problem):
    net, inputs, labels = problem
    library = torchattacks.PGD(net, eps=0.1, alpha=0.02, steps=7, random_start=False)
    attack = make("PGD", steps=7, alpha=0.02, options={"random_start": False})
    proposed = attack.propose(net, inputs, labels, threat(40), generator())
    assert torch.equal(library(inputs, labels), proposed)


def test_step_follows_epsilon_where_it_is_not_given(problem):
    """The library's own step of 2/255 would never reach the border of a large ball."""
    net, inputs, labels = problem
    attack = make("PGD", options={"random_start": False})
    proposed = attack.propose(net, inputs, labels, threat(40, epsilon=0.5), generator())
    assert (proposed - inputs).abs().max() > 0.45


def test_flat_inputs_are_attacked_as_images_are(problem):
    net, inputs, labels = problem
    attack = make("APGD")
    images = judge(attack, net, inputs, labels, threat(40), generator())
    flat = judge(attack, net, inputs.flatten(1), labels, threat(40), generator())
    assert images.success.any()
    assert abs(images.accuracy - flat.accuracy) <= 0.05


@pytest.mark.parametrize(
    ("variant", "options", "classes"), [("APGD", {"loss": "dlr"}, 3), ("APGDT", {}, 4)]
)
def test_losses_that_need_more_classes_refuse_fewer(variant, options, classes):
    """The library would fail with an index out of range."""
    attack = make(variant, options=options)
    for number in (classes - 1, classes):
        weight, bias, inputs, labels = linear(number, 5, 20)
        problem = lambda x, w=weight, b=bias: x @ w.T + b, inputs, labels, threat(20)
        if number < classes:
            with pytest.raises(ValueError, match=f"needs {classes} classes or more"):
                judge(attack, *problem, generator())
        else:
            assert judge(attack, *problem, generator()).accuracy <= 1


def test_apgd_on_two_classes_works_with_cross_entropy():
    weight, bias, inputs, labels = linear(2, 5, 50)
    result = judge(
        make("APGD"), lambda x: x @ weight.T + bias, inputs, labels, threat(50), generator()
    )
    assert result.success.any()


@pytest.mark.parametrize("domain", [None, (0.0, 2.0)])
def test_other_domains_are_refused(problem, domain):
    """The library clips to [0, 1] whatever the inputs."""
    with pytest.raises(ValueError, match=r"needs the domain \(0, 1\)"):
        judge(make("PGD"), *problem, threat(40, domain=domain), generator())


def test_several_epsilons_are_refused(problem):
    several = Threat(norm=Norm(math.inf), epsilon=torch.linspace(0.1, 0.2, 40))
    with pytest.raises(ValueError, match="one epsilon for all samples"):
        judge(make("PGD"), *problem, several, generator())


def test_other_norm_is_refused(problem):
    with pytest.raises(ValueError, match="norms 2, got norm inf"):
        judge(make("PGDL2"), *problem, threat(40), generator())


@pytest.mark.parametrize(
    "options",
    [{"alpha": 0.1}, {"options": {"decay": 1.0}}, {"options": {"eps": 0.9}}],
)
def test_options_that_the_attack_does_not_have_are_refused(problem, options):
    with pytest.raises(ValueError, match="torchattacks:FGSM has no option"):
        judge(make("FGSM", **options), *problem, threat(40), generator())


def test_absent_package_is_named_with_the_way_out(monkeypatch):
    plugin = load("lipbench.attacks", "torchattacks", Attack)
    monkeypatch.setitem(__import__("sys").modules, "torchattacks", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install \"lipbench\[torchattacks\]\""):
        plugin.variants()
