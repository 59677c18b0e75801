"""The published algorithms as they are usually run: one class at a time, one image at a time, nothing shared.

These are the other side of every ratio in this folder. They are written from the papers' pseudo-code with the
habits of the field's scripts (real images normalized and in memory, a network built per step, a data loader per
pass, the test pass without `no_grad`), on torch's own layers.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset


class PlainConvNet(nn.Module):
    """ConvNet-3/128 on torch's layers: conv, instance norm, ReLU, average pool; a linear layer."""

    def __init__(self, channels: int, classes: int, size: int, width: int = 128, depth: int = 3) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        side = size
        for d in range(depth):
            padding = 3 if channels == 1 and d == 0 else 1
            side = side + 2 * padding - 2
            layers += [
                nn.Conv2d(channels if d == 0 else width, width, 3, padding=padding),
                nn.GroupNorm(width, width, affine=True),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2, 2),
            ]
            side //= 2
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * side * side, classes)

    def embed(self, x: Tensor) -> Tensor:
        """Flat features."""
        return self.features(x).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.classifier(self.embed(x))


class Dm:
    """Distribution matching, the literal loop: per class, real and synthetic passes; one backward over all."""

    def __init__(self, x: Tensor, y: Tensor, ipc: int, real_batch: int, lr: float = 1.0, augment: bool = True) -> None:
        self.x, self.classes, self.ipc, self.real_batch = x, int(y.max()) + 1, ipc, real_batch
        self.members = [(y == c).nonzero().squeeze(1) for c in range(self.classes)]
        self.augment, self.generator = augment, torch.Generator().manual_seed(0)
        start = torch.cat([x[self._draw(c, ipc)] for c in range(self.classes)])
        self.images = start.clone().requires_grad_()
        self.optimizer = torch.optim.SGD([self.images], lr=lr, momentum=0.5)

    def _draw(self, c: int, n: int) -> Tensor:
        order = torch.randperm(len(self.members[c]), generator=self.generator)
        return self.members[c][order[:n]]

    def step(self) -> float:
        """One image update."""
        channels, size = self.x.shape[1], self.x.shape[2]
        network = PlainConvNet(channels, self.classes, size).train()
        for parameter in network.parameters():
            parameter.requires_grad = False
        loss = torch.tensor(0.0)
        for c in range(self.classes):
            real = self.x[self._draw(c, self.real_batch)]
            synthetic = self.images[c * self.ipc : (c + 1) * self.ipc]
            if self.augment:
                seed = int(torch.randint(0, 2**31, (1,), generator=self.generator))
                real, synthetic = siamese_batch(real, seed), siamese_batch(synthetic, seed)
            target = network.embed(real).detach()
            loss = loss + torch.sum((target.mean(0) - network.embed(synthetic).mean(0)) ** 2)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Stage:
    """Matching on a stage of a trained network, the literal loop: class by class, fresh real images, tiles, a loss."""

    def __init__(self, x: Tensor, y: Tensor, ipc: int, real_batch: int, factor: int, width: int) -> None:
        self.x, self.classes, self.ipc, self.real_batch, self.factor = x, int(y.max()) + 1, ipc, real_batch, factor
        self.members = [(y == c).nonzero().squeeze(1) for c in range(self.classes)]
        self.network = PlainConvNet(x.shape[1], self.classes, x.shape[2], width).eval()
        for parameter in self.network.parameters():
            parameter.requires_grad = False
        self.images = torch.cat([x[m[:ipc]] for m in self.members]).clone().requires_grad_()
        self.optimizer = torch.optim.Adam([self.images], lr=0.01)
        self.generator = torch.Generator().manual_seed(0)

    def step(self) -> float:
        """One image update, class by class."""
        total, size = 0.0, self.x.shape[2] // self.factor
        for c, members in enumerate(self.members):
            real = self.x[members[torch.randperm(len(members), generator=self.generator)[: self.real_batch]]]
            stored = self.images[c * self.ipc : (c + 1) * self.ipc]
            tiles = stored.unfold(2, size, size).unfold(3, size, size).permute(0, 2, 3, 1, 4, 5).flatten(0, 2)
            synthetic = F.interpolate(tiles, size=self.x.shape[2:], mode="bilinear")
            seed = int(torch.randint(0, 2**31, (1,), generator=self.generator))
            real, synthetic = siamese_batch(real, seed), siamese_batch(synthetic, seed)
            target = self.network.embed(real).detach().mean(0)
            features = self.network.embed(synthetic)
            logits = self.network.classifier(features)
            loss = ((target - features.mean(0)) ** 2).sum() + F.cross_entropy(logits, torch.full((len(logits),), c))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.item()
        return total


class Dc:
    """Gradient matching, the literal loop: two gradients per class, one backward over the sum of all classes."""

    def __init__(self, x: Tensor, y: Tensor, ipc: int, real_batch: int, augment: bool) -> None:
        self.data = Dm(x, y, ipc, real_batch, lr=0.1, augment=augment)
        self.network = PlainConvNet(x.shape[1], self.data.classes, x.shape[2]).train()
        self.weights = list(self.network.parameters())

    def step(self) -> float:
        """One image update."""
        data = self.data
        loss = torch.tensor(0.0)
        for c in range(data.classes):
            real = data.x[data._draw(c, data.real_batch)]
            synthetic = data.images[c * data.ipc : (c + 1) * data.ipc]
            if data.augment:
                seed = int(torch.randint(0, 2**31, (1,), generator=data.generator))
                real, synthetic = siamese_batch(real, seed), siamese_batch(synthetic, seed)
            target = torch.full((len(real),), c)
            found = torch.autograd.grad(F.cross_entropy(self.network(real), target), self.weights)
            wanted = [g.detach().clone() for g in found]
            target = torch.full((data.ipc,), c)
            got = torch.autograd.grad(F.cross_entropy(self.network(synthetic), target), self.weights, create_graph=True)
            loss = loss + sum(row_cosine(a, b) for a, b in zip(got, wanted, strict=True) if a.ndim > 1)
        data.optimizer.zero_grad()
        loss.backward()
        data.optimizer.step()
        return loss.item()

    def inner(self, epochs: int) -> None:
        """Passes of the network over the synthetic set between two updates."""
        images = self.data.images.detach().clone()
        train_passes(
            self.network, images, torch.arange(len(images)) // self.data.ipc, epochs, self.data.augment, momentum=0.0
        )


class Idc:
    """IDC, the literal inner step: an update per class, then the network trains on real images."""

    def __init__(self, x: Tensor, y: Tensor, ipc: int, real_batch: int, factor: int, net_images: int) -> None:
        self.data = Dm(x, y, ipc, real_batch, lr=0.005)
        self.y, self.real_batch, self.factor, self.net_images = y, real_batch, factor, net_images
        self.network = PlainConvNet(x.shape[1], self.data.classes, x.shape[2]).train()
        self.weights = list(self.network.parameters())
        self.convs = [i for i, p in enumerate(self.weights) if p.ndim == 4]
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4, foreach=False
        )

    def step(self) -> None:
        """One image update of every class, then one stretch of training."""
        data = self.data
        for c in range(data.classes):
            real = data.x[data._draw(c, self.real_batch)]
            synthetic = self.decode(data.images[c * data.ipc : (c + 1) * data.ipc])
            seed = int(torch.randint(0, 2**31, (1,), generator=data.generator))
            both = siamese_batch(torch.cat([real, synthetic]), seed)
            real, synthetic = both[: len(real)], both[len(real) :]
            found = torch.autograd.grad(F.cross_entropy(self.network(real), torch.full((len(real),), c)), self.weights)
            target = torch.full((len(synthetic),), c)
            got = torch.autograd.grad(F.cross_entropy(self.network(synthetic), target), self.weights, create_graph=True)
            loss = sum((got[i] - found[i].detach()).square().sum() for i in self.convs)
            data.optimizer.zero_grad()
            loss.backward()
            data.optimizer.step()
        order = torch.randperm(len(data.x), generator=data.generator)[: self.net_images]
        for index in order.split(self.real_batch):
            images = independent_batch(data.x[index], data.generator)
            loss = F.cross_entropy(self.network(images), self.y[index])
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()

    def decode(self, x: Tensor) -> Tensor:
        """Every stored image cut into factor x factor tiles, each enlarged to a whole image."""
        side = x.shape[2] // self.factor
        tiles = [
            x[:, :, i * side : (i + 1) * side, j * side : (j + 1) * side]
            for i in range(self.factor)
            for j in range(self.factor)
        ]
        return F.interpolate(torch.cat(tiles), size=x.shape[2:], mode="bilinear")


def row_cosine(a: Tensor, b: Tensor) -> Tensor:
    """One minus the cosine, summed over output rows, with the published additive epsilon."""
    a, b = a.flatten(1), b.flatten(1)
    return (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()


def siamese(x: Tensor, seed: int) -> Tensor:
    """One operation with one parameter for every image, image by image."""
    op, u, v = drawn(torch.Generator().manual_seed(seed))
    return torch.cat([one_op(image[None], op, u, v) for image in x])


def siamese_batch(x: Tensor, seed: int) -> Tensor:
    """The same over the whole batch at once, as the published DM and DSA loops do it."""
    return one_op(x, *drawn(torch.Generator().manual_seed(seed)))


def independent(x: Tensor, g: torch.Generator) -> Tensor:
    """One operation for the batch, parameters per image."""
    op = int(torch.randint(0, 6, (1,), generator=g))
    return torch.cat([one_op(image[None], op, *torch.rand(2, generator=g).tolist()) for image in x])


def independent_batch(x: Tensor, g: torch.Generator) -> Tensor:
    """One operation for the batch; the parameters differ by image in the published code, which costs the same."""
    return siamese_batch(x, int(torch.randint(0, 2**31, (1,), generator=g)))


def drawn(g: torch.Generator) -> tuple[int, float, float]:
    """An operation and two parameters in [0, 1)."""
    op = int(torch.randint(0, 6, (1,), generator=g))
    u, v = torch.rand(2, generator=g).tolist()
    return op, u, v


def one_op(x: Tensor, op: int, u: float, v: float) -> Tensor:
    """Color, crop, cutout, flip, scale or rotate of images (n, c, h, w), all by the same parameters."""
    h = x.shape[2]
    if op == 0:
        x = x + (u - 0.5)
        middle = x.mean(1, keepdim=True)
        x = (x - middle) * (2 * v) + middle
        whole = x.mean((1, 2, 3), keepdim=True)
        return (x - whole) * (u + 0.5) + whole
    if op == 1:
        p = int(0.125 * h + 0.5)
        top, left = int(u * (2 * p + 1)), int(v * (2 * p + 1))
        return F.pad(x, (p, p, p, p))[:, :, top : top + h, left : left + h]
    if op == 2:
        k = int(0.5 * h + 0.5)
        mask = torch.ones_like(x)
        top, left = int(u * (h + 1)) - k // 2, int(v * (h + 1)) - k // 2
        mask[:, :, max(top, 0) : max(top + k, 0), max(left, 0) : max(left + k, 0)] = 0
        return x * mask
    if op == 3:
        return x.flip(3) if u < 0.5 else x
    theta = affine(op, u, v).expand(len(x), 2, 3)
    return F.grid_sample(x, F.affine_grid(theta, list(x.shape), align_corners=False), align_corners=False)


def affine(op: int, u: float, v: float) -> Tensor:
    """The matrix of a scale (op 4) or a rotation (op 5), (1, 2, 3)."""
    if op == 4:
        a, b = 1 / 1.2 + u * (1.2 - 1 / 1.2), 1 / 1.2 + v * (1.2 - 1 / 1.2)
        return torch.tensor([[[a, 0.0, 0.0], [0.0, b, 0.0]]])
    t = (u - 0.5) * 2 * 15 * math.pi / 180
    return torch.tensor([[[math.cos(t), -math.sin(t), 0.0], [math.sin(t), math.cos(t), 0.0]]])


def train_passes(
    network: nn.Module, x: Tensor, y: Tensor, passes: int, augment: bool, momentum: float = 0.9, batch: int = 256
) -> None:
    """Training on a synthetic set: a data loader, one optimizer step per batch, accuracy counted on the way."""
    decay = 5e-4 if momentum else 0.0
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=momentum, weight_decay=decay, foreach=False)
    g = torch.Generator().manual_seed(0)
    loader = DataLoader(TensorDataset(x, y), batch_size=batch, shuffle=True, num_workers=0, generator=g)
    network.train()
    for _ in range(passes):
        right = 0
        for images, labels in loader:
            if augment:
                images = independent_batch(images, g)
            out = network(images)
            loss = F.cross_entropy(out, labels)
            right += int((out.argmax(1) == labels).sum().item())
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            loss.item()


def test_pass(network: nn.Module, x: Tensor, y: Tensor) -> float:
    """Accuracy in eval mode, batches of 256, graphs built and thrown away."""
    network.eval()
    right = 0
    for images, labels in DataLoader(TensorDataset(x, y), batch_size=256):
        out = network(images)
        F.cross_entropy(out, labels).item()
        right += int((out.argmax(1) == labels).sum().item())
    return right / len(y)


class Frepo:
    """FRePo's step as it is written down: regress a real batch on features of a network, then train that network."""

    def __init__(self, x: Tensor, y: Tensor, ipc: int, batch: int, mirror: bool) -> None:
        self.x, self.batch, self.mirror, self.generator = x, batch, mirror, torch.Generator().manual_seed(0)
        self.y = F.one_hot(y).float() - 1 / (int(y.max()) + 1)
        self.network = PlainConvNet(x.shape[1], self.y.shape[1], x.shape[2])
        chosen = torch.cat([(y == c).nonzero().squeeze(1)[:ipc] for c in range(self.y.shape[1])])
        self.images, self.labels = (t[chosen].clone().requires_grad_() for t in (x, self.y))
        self.outer = torch.optim.Adam([self.images, self.labels], lr=3e-4)
        self.inner = torch.optim.Adam(self.network.parameters(), lr=3e-4)

    def step(self) -> float:
        """One image update and one update of the network."""
        index = torch.randint(len(self.x), (self.batch,), generator=self.generator)
        images, labels = self.images, self.labels
        if self.mirror:
            images, labels = torch.cat([images, images.flip(-1)]), torch.cat([labels, labels])
        support = self.network.embed(images)
        with torch.no_grad():
            target = self.network.embed(self.x[index])
        loss = (
            0.5 * (self.y[index] - regression(support @ support.T, target @ support.T, labels)).square().sum(1).mean()
        )
        self.outer.zero_grad()
        loss.backward()
        self.outer.step()
        error = (self.network(self.images.detach()) - self.labels.detach()).square().sum(1).mean()
        self.inner.zero_grad()
        error.backward()
        self.inner.step()
        return loss.item()


def regression(support: Tensor, cross: Tensor, labels: Tensor, ridge: float = 1e-6) -> Tensor:
    """Kernel ridge regression in float64, its ridge in units of the mean diagonal."""
    support, eye = support.double(), torch.eye(len(support), dtype=torch.float64)
    return cross.double() @ torch.linalg.solve(support + ridge * support.trace() / len(support) * eye, labels.double())


class Kip:
    """KIP's step: both kernels of a dense network of infinite width by the formula, through autograd."""

    def __init__(self, x: Tensor, y: Tensor, ipc: int, batch: int, depth: int = 3) -> None:
        self.x, self.batch, self.depth, self.generator = x, batch, depth, torch.Generator().manual_seed(0)
        self.y = F.one_hot(y).float() - 1 / (int(y.max()) + 1)
        chosen = torch.cat([(y == c).nonzero().squeeze(1)[:ipc] for c in range(self.y.shape[1])])
        self.images, self.labels = (t[chosen].clone().requires_grad_() for t in (x, self.y))
        self.optimizer = torch.optim.Adam([self.images, self.labels], lr=0.01)

    def kernel(self, a: Tensor, b: Tensor) -> Tensor:
        """The NTK of images (m, ...) and (n, ...)."""
        a, b = (t.double().flatten(1) for t in (a, b))
        a, b = ((t - t.mean(1, keepdim=True)) / t.std(1, unbiased=False, keepdim=True) for t in (a, b))
        s = t = 2 * a @ b.T / a.shape[1] + 0.01
        left, right = (2 * r.square().mean(1) + 0.01 for r in (a, b))
        for _ in range(self.depth):
            scale = (left[:, None] * right).sqrt()
            r = (s / scale).clamp(-1 + 1e-9, 1 - 1e-9)
            angle = math.pi - r.acos()
            s = scale * ((1 - r * r).sqrt() + r * angle) / math.pi + 0.01
            t = s + t * angle / math.pi
            left, right = left + 0.01, right + 0.01
        return t

    def step(self) -> float:
        """One update of images and labels."""
        index = torch.randint(len(self.x), (self.batch,), generator=self.generator)
        support, cross = self.kernel(self.images, self.images), self.kernel(self.x[index], self.images)
        loss = 0.5 * (self.y[index] - regression(support, cross, self.labels)).square().sum(1).mean()
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return loss.item()


class Recover:
    """The recovery loop as published: hooks on batch norm in training-style code, Adam, one shift for the batch.

    DWA's network keeps gradients of its weights, which every step computes and nothing uses.
    """

    def __init__(self, count: int, weight_gradients: bool) -> None:
        from datastill.models import resolve_network

        self.network: nn.Module = resolve_network("resnet18:norm=batch", channels=3, classes=10, size=(32, 32))(0)
        self.network.eval().requires_grad_(weight_gradients)
        self.terms: list[Tensor] = []
        for layer in self.network.modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.register_forward_hook(self._hook)
        g = torch.Generator().manual_seed(0)
        self.x = torch.randn(count, 3, 32, 32, generator=g).requires_grad_()
        self.y = torch.arange(count) % 10
        self.optimizer = torch.optim.Adam([self.x], lr=0.25, betas=(0.5, 0.9), eps=1e-8, foreach=False)

    def _hook(self, layer: nn.BatchNorm2d, given: tuple[Tensor, ...], out: Tensor) -> None:
        x = given[0]
        mean = x.mean([0, 2, 3])
        variance = x.permute(1, 0, 2, 3).contiguous().view(x.shape[1], -1).var(1, unbiased=False)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self.terms.append(torch.norm(layer.running_var - variance, 2) + torch.norm(layer.running_mean - mean, 2))

    def step(self) -> None:
        """One update of all pixels."""
        self.terms = []
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.network(self.x.roll((2, 3), (2, 3))), self.y)
        first = [10.0] + [1.0] * (len(self.terms) - 1)
        loss = loss + 0.01 * sum(term * scale for term, scale in zip(self.terms, first, strict=True))
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.x.clamp_(-2, 2)
