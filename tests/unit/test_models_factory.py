"""Factories: from names, classes, functions, modules and files to fresh networks."""

from __future__ import annotations

import importlib.util
import json
import pickle
import subprocess
import sys
from functools import partial

import pytest
import torch
from torch import nn

from datastill.core.errors import InputError, MissingExtra
from datastill.core.rng import isolated
from datastill.models import ConvNet, Network, NetworkFactory, Wrapped, functional, networks, resolve_network
from datastill.models.anatomy import count_macs, dissect

COLOR = {"channels": 3, "classes": 10, "size": (32, 32)}
TINY = {"channels": 1, "classes": 4, "size": (8, 8)}


def images(n: int, channels: int, size: tuple[int, int]) -> torch.Tensor:
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(0))


def same(a: nn.Module, b: nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


def hooks_on(module: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in module.modules())


class Own(nn.Module):
    """A user's network with in-place activations and an arrangement of its own."""

    def __init__(self, channels: int = 1, classes: int = 4) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 6, 3, padding=1)
        self.act = nn.ReLU(inplace=True)
        self.mean = nn.AdaptiveAvgPool2d(2)
        self.hidden = nn.Linear(24, 12)
        self.out = nn.Linear(12, classes)
        self.broken = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.mean(self.act(self.conv(x))).flatten(1)
        h = self.hidden(h).tanh()
        if self.broken:
            raise ValueError("broken")
        return self.out(h)


class Convolutional(nn.Module):
    """No linear layer at all."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).mean((2, 3))


class OwnNorm(nn.Module):
    """Couples samples in a way that no type tells, and ends in a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x - x.mean(0) if self.training else x
        return self.out(x.flatten(1)).softmax(1)


class OwnNetwork(Network):
    """A user's subclass of Network, which needs no wrapping."""

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.out = nn.Linear(64, classes)

    def embed(self, x):
        return x.flatten(1)

    def classify(self, features):
        return self.out(features)

    def tap_names(self):
        return ("flat", "logits")

    def _taps(self, x, names):
        return {"flat": self.embed(x), "logits": self(x)}


def features_of(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return module.conv(x)


# ---- names and options


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((8, 8), {"width": 32, "depth": 2, "padding": 1}),
        ((15, 40), {"width": 32, "depth": 2, "padding": 1}),
        ((16, 16), {"width": 128, "depth": 3}),
        ((40, 40), {"width": 128, "depth": 3}),
        ((41, 99), {"width": 128, "depth": 4}),
        ((81, 81), {"width": 128, "depth": 5}),
    ],
)
def test_the_default_suits_the_size(size, options):
    factory = resolve_network(None, channels=3, classes=2, size=size)
    assert factory.name == "convnet"
    assert {k: factory.options[k] for k in options} == options


def test_options_from_text():
    factory = resolve_network("convnet:width=16, depth=2,norm=batch,padding=1", **COLOR)
    assert (factory.options["width"], factory.options["norm"], factory.options["padding"]) == (16, "batch", 1)
    assert str(factory) == "convnet:width=16,depth=2,norm=batch,padding=1"
    assert resolve_network(str(factory), **COLOR).describe() == factory.describe()
    assert str(resolve_network("convnet:width=128", **COLOR)) == "convnet"


@pytest.mark.parametrize("name", [n for n in networks() if "<" not in n and ":" not in n])
def test_every_listed_name_resolves(name):
    factory = resolve_network(name, **COLOR)
    with torch.no_grad():
        assert factory(0)(images(1, 3, (32, 32))).shape == (1, 10)


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("convent", "Did you mean 'convnet'"),
        ("resnet18ap", "Did you mean 'resnet18-ap'"),
        ("convnet:widht=3", "Did you mean 'width'"),
        ("convnet:width", "width=32"),
        ("lenet:norm=batch", "no options"),
        ("convnet:width=wide", "width"),
        ("no_such_package:Net", "no_such_package"),
        ("collections:OrderedDic", "Did you mean 'OrderedDict'"),
        ("missing/file.py:Net", "does not exist"),
        ("json:__name__", "must name a class"),
        (3, "not int"),
    ],
)
def test_what_cannot_be_a_network(spec, match):
    with pytest.raises(InputError, match=match):
        resolve_network(spec, **COLOR)


def test_bad_shapes():
    with pytest.raises(InputError, match="classes"):
        resolve_network("mlp", channels=1, classes=0, size=8)
    assert resolve_network("mlp", channels=1, classes=2, size=8).size == (8, 8)


# ---- seeds, facts, descriptions


@pytest.mark.parametrize("spec", ["convnet:width=8", Own, OwnNetwork])
def test_one_seed_one_set_of_weights(spec):
    factory = resolve_network(spec, **TINY)
    state = torch.get_rng_state()
    a, b, c = factory(1), factory(1), factory(2)
    assert torch.equal(state, torch.get_rng_state())
    assert same(a, b)
    assert not same(a, c)
    assert a.training


@pytest.mark.parametrize("spec", ["convnet:width=8", Own])
def test_a_factory_survives_pickling(spec):
    factory = resolve_network(spec, **TINY)
    again = pickle.loads(pickle.dumps(factory))
    assert same(factory(5), again(5))
    assert factory.describe() == again.describe()


@pytest.mark.parametrize(
    ("channels", "size", "macs"),
    [
        (3, 32, 27 * 128 * 1024 + 1152 * 128 * (256 + 64) + 20_480),
        (1, 28, 9 * 128 * 1024 + 1152 * 128 * (256 + 64) + 20_480),
    ],
)
def test_macs_of_the_convnet(channels, size, macs):
    factory = resolve_network("convnet", channels=channels, classes=10, size=size)
    assert factory.macs == macs
    assert round(macs / 1e6, 1) == {3: 50.7, 1: 48.4}[channels]
    assert factory.parameters_count == 320_010 - (0 if channels == 3 else 2 * 9 * 128)
    assert factory.embed_size == 2048


def test_macs_of_transposed_and_grouped_convolutions():
    def build():
        return nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1),
            nn.ConvTranspose2d(4, 2, 2, stride=2),
            nn.Conv2d(2, 2, 3, padding=1, groups=2),
            nn.Flatten(),
            nn.Linear(512, 4),
        )

    expected = 64 * 4 * 9 + 64 * 4 * 2 * 4 + 256 * 2 * 9 + 512 * 4
    assert resolve_network(build, **TINY).macs == expected


def test_measuring_leaves_a_network_as_it_was():
    with isolated(0):
        net = Own()
    net.act.eval()
    assert dissect(net, "own", 1, 4, (8, 8), None).head == "out"
    assert count_macs(net, 1, (8, 8)) > 0
    assert hooks_on(net) == 0
    assert net.training
    assert not net.act.training


def test_descriptions_are_json_and_tell_networks_apart():
    wide, narrow = (resolve_network(f"convnet:width={w}", **TINY).describe() for w in (16, 8))
    assert json.loads(json.dumps(wide)) == wide
    assert wide != narrow
    mine = resolve_network(Own, **TINY).describe()
    assert mine["name"].endswith(".Own")
    assert mine["shapes"] != resolve_network(OwnNorm, **TINY).describe()["shapes"]


def test_coupling_of_factories():
    assert resolve_network("convnet:norm=batch,width=8", **TINY).couples_samples
    assert not resolve_network("convnet:width=8", **TINY).couples_samples
    assert resolve_network(OwnNorm, **TINY).couples_samples
    assert not resolve_network(Own, **TINY).couples_samples


def test_a_factory_is_returned_where_it_fits():
    factory = resolve_network("mlp", **TINY)
    assert resolve_network(factory, **TINY) is factory
    with pytest.raises(InputError, match="classes 4"):
        resolve_network(factory, channels=1, classes=5, size=8)
    with pytest.raises(InputError, match="embed"):
        resolve_network(factory, **TINY, embed=features_of)


# ---- the user's networks

CALLABLES = {
    "class": Own,
    "no arguments": lambda: Own(),
    "two": lambda channels, classes: Own(channels, classes),
    "size": lambda size: nn.Sequential(nn.Flatten(), nn.Linear(size[0] * size[1], 4)),
    "other names": lambda num_classes, in_channels: Own(in_channels, num_classes),
    "kwargs": lambda **shapes: Own(shapes["channels"], shapes["classes"]),
    "kwargs of another library": lambda **kw: partial(lambda num_classes: Own(1, num_classes))(**kw),
    "partial": partial(Own, channels=1),
}


@pytest.mark.parametrize("name", CALLABLES)
def test_a_class_or_function_is_called_with_what_it_accepts(name):
    net = resolve_network(CALLABLES[name], **TINY)(0)
    assert isinstance(net, Wrapped)
    assert net(images(2, 1, (8, 8))).shape == (2, 4)


def test_features_are_the_input_of_the_last_linear_layer():
    net = resolve_network(Own, **TINY)(0)
    x = images(3, 1, (8, 8))
    module = net.module
    hidden = module.hidden(module.mean(module.conv(x).relu()).flatten(1)).tanh()
    assert torch.equal(net.embed(x), hidden)
    assert torch.equal(net.classify(net.embed(x)), net(x))
    assert net.embed_size == 12
    assert not module.act.inplace
    assert hooks_on(net) == 0


def test_taps_of_a_wrapped_network():
    net = resolve_network(Own, **TINY)(0)
    x = images(3, 1, (8, 8))
    taps = net.taps(x, ["conv", "act", "flat", "logits"])
    assert torch.equal(taps["conv"], net.module.conv(x))
    assert torch.equal(taps["act"], taps["conv"].relu())
    assert torch.equal(taps["flat"], net.embed(x))
    assert torch.equal(taps["logits"], net(x))
    with pytest.raises(InputError, match="Did you mean 'conv'"):
        net.taps(x, ["cov"])


@pytest.mark.parametrize("call", [lambda n, x: n.embed(x), lambda n, x: n.taps(x, ["conv", "flat"])])
def test_no_hook_stays_after_an_exception(call):
    net = resolve_network(Own, **TINY)(0)
    net.module.broken = True
    with pytest.raises(ValueError, match="broken"):
        call(net, images(1, 1, (8, 8)))
    assert hooks_on(net) == 0


def test_a_tap_is_not_changed_by_what_the_network_does_in_place_later():
    class Adds(Own):
        def forward(self, x):
            h = self.conv(x)
            h += 1
            return self.out(self.hidden(self.mean(h).flatten(1)))

    net = resolve_network(Adds, **TINY)(0)
    x = images(1, 1, (8, 8))
    assert torch.equal(net.taps(x, ["conv"])["conv"], net.module.conv(x))


def test_wrapped_networks_stack_under_vmap():
    factory = resolve_network(Own, **TINY)
    nets = [factory(seed).double() for seed in range(3)]
    x = images(5, 1, (8, 8)).double()
    weights, _ = torch.func.stack_module_state(nets)

    def run(method):
        return torch.vmap(lambda w: functional(nets[0], w, x, method=method))(weights)

    for method in ("forward", "embed"):
        expected = torch.stack([getattr(n, method)(x) for n in nets])
        assert torch.allclose(run(method), expected, rtol=1e-12)
    assert hooks_on(nets[0]) == 0


def test_an_instance_is_copied_and_drawn_anew():
    with isolated(7):
        mine = Own().eval()
    before = {k: v.clone() for k, v in mine.state_dict().items()}
    factory = resolve_network(mine, **TINY)
    a, b = factory(1), factory(2)
    assert not same(a, mine)
    assert not same(a, b)
    assert same(a, factory(1))
    assert a.training
    assert not mine.training
    assert mine.act.inplace
    assert all(torch.equal(v, before[k]) for k, v in mine.state_dict().items())
    assert a.module.conv.weight.std().item() == pytest.approx(mine.conv.weight.std().item(), rel=0.3)


def test_an_instance_that_cannot_be_drawn_anew():
    class Scaled(Own):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

    with isolated(0), pytest.raises(InputError, match=r"reset_parameters\(\).*pass a function"):
        resolve_network(Scaled(), **TINY)


def test_a_function_that_returns_one_network_for_all():
    with isolated(0):
        mine = Own()
    with pytest.raises(InputError, match="same network at every call"):
        resolve_network(lambda: mine, **TINY)


def test_lazy_layers_are_sized_and_seeded():
    def build():
        return nn.Sequential(nn.LazyBatchNorm2d(affine=False), nn.Flatten(), nn.LazyLinear(4))

    factory = resolve_network(build, **TINY)
    assert factory.parameters_count == 64 * 4 + 4
    assert factory(0).module[0].num_batches_tracked == 0
    assert same(factory(1), factory(1))
    assert not same(factory(1), factory(2))


def test_a_network_without_a_linear_layer():
    with pytest.raises(InputError, match=r"no linear layer.*embed="):
        resolve_network(Convolutional, **TINY)
    factory = resolve_network(Convolutional, **TINY, embed=features_of)
    net = factory(0)
    x = images(2, 1, (8, 8))
    assert torch.equal(net.embed(x), net.module.conv(x).flatten(1))
    assert torch.equal(net.taps(x, ["flat"])["flat"], net.embed(x))
    assert factory.describe()["embed"].endswith("features_of")
    with pytest.raises(InputError, match="no linear layer that maps"):
        net.classify(net.embed(x))


def test_a_subclass_of_network_is_taken_as_it_is():
    factory = resolve_network(OwnNetwork, **TINY)
    net = factory(0)
    assert type(net) is OwnNetwork
    assert (factory.embed_size, net.embed_size, net.size) == (64, 64, (8, 8))
    with isolated(0):
        ours = ConvNet(1, 4, (8, 8), width=4, depth=2)
    assert resolve_network(ours, **TINY)(0).tap_names() == ours.tap_names()


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        (lambda: Own(classes=7), r"\(2, 7\).*4 classes"),
        (lambda: Own(channels=3), "cannot take images of 1 x 8 x 8"),
        (lambda: 3, "must build a torch.nn.Module, not int"),
        (lambda needed: Own(), "needed"),
        (lambda: 1 / 0, "ZeroDivisionError"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.LSTM(4, 4)), "one tensor"),
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.Flatten(0), nn.Unflatten(0, (2, 64))), "4 classes"),
    ],
)
def test_user_networks_that_do_not_fit(spec, match):
    with pytest.raises(InputError, match=match):
        resolve_network(spec, **TINY)


FILE = """
import torch
torch.manual_seed(3)
class Net(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        self.out = torch.nn.Linear(64, classes)
    def forward(self, x):
        return self.out(x.flatten(1))
instance = Net(4)
"""


@pytest.mark.slow
def test_a_file_and_a_module_by_name(tmp_path, monkeypatch):
    (tmp_path / "my networks.py").write_text(FILE)
    (tmp_path / "mine_on_disk.py").write_text(FILE)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    for spec in (f"{tmp_path}/my networks.py:Net", "mine_on_disk:Net", "mine_on_disk:instance"):
        factory = resolve_network(spec, **TINY)
        assert isinstance(factory, NetworkFactory)
        assert factory(0)(images(2, 1, (8, 8))).shape == (2, 4)
        assert same(factory(1), pickle.loads(pickle.dumps(factory))(1))
        (tmp_path / "factory.pickle").write_bytes(pickle.dumps(factory))
        code = "import pickle; pickle.load(open('factory.pickle', 'rb'))(1)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    assert sys.path == path
    with pytest.raises(InputError, match="Did you mean 'Net'"):
        resolve_network("my networks.py:Nett", **TINY)
    (tmp_path / "bad.py").write_text("import no_such_thing\n")
    with pytest.raises(InputError, match="no_such_thing"):
        resolve_network("bad.py:Net", **TINY)


# ---- torchvision and timm


@pytest.mark.parametrize(("name", "size"), [("torchvision/resnet18", 512), ("timm/resnet10t", 512)])
@pytest.mark.parametrize("channels", [1, 3])
def test_other_libraries(name, size, channels):
    if name.startswith("timm") and importlib.util.find_spec("timm") is None:
        pytest.skip("timm is not installed")
    factory = resolve_network(name, channels=channels, classes=7, size=(32, 40))
    net = factory(0).eval()
    x = images(2, channels, (32, 40))
    with torch.no_grad():
        features = net.embed(x)
        assert features.shape == (2, size)
        assert torch.equal(net.classify(features), net(x))
    assert net(x).shape == (2, 7)
    assert factory.couples_samples
    assert not any(getattr(m, "inplace", False) for m in net.modules())
    assert same(factory(3), factory(3))
    assert not same(factory(3), factory(4))
    assert hooks_on(net) == 0


@pytest.mark.parametrize(
    ("spec", "match"),
    [
        ("torchvision/resnet81", "Did you mean 'resnet18'"),
        ("torchvision/resnet18:weights=DEFAULT", "weights"),
        ("torchvision/resnet18:depth=3", "depth"),
        ("torchvision/zzz", "has no classification network"),
    ],
)
def test_other_libraries_refuse(spec, match):
    with pytest.raises(InputError, match=match):
        resolve_network(spec, **COLOR)


def test_timm_absent(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(MissingExtra, match=r"pip install 'datastill\[timm\]'"):
        resolve_network("timm/resnet10t", **COLOR)


@pytest.mark.slow
def test_torchvision_imports_after_a_failure_and_not_before_it_is_asked_for():
    """In a fresh process: the package alone imports neither; a failed import does not spoil ours."""
    code = """
import sys
import datastill.models
assert not any(n.split('.')[0] in ('torchvision', 'timm') for n in sys.modules), 'imported too early'
try:
    import torchvision
except RuntimeError:
    pass
from datastill.core.torchvision import import_torchvision
torchvision = import_torchvision()
assert torchvision is import_torchvision() is sys.modules['torchvision']
import torch
assert torchvision.models.resnet18(weights=None).eval()(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
