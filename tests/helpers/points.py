"""Points to cluster: as layers have them, in clusters, and without any."""

import torch

from acsp_lightning.functional import ClassMoments


def jm_like(n, seed):
    """Vectors as a layer has them: 10 classes, 4 positions, channels of different strength."""
    generator = torch.Generator().manual_seed(seed)
    strength = 2 * torch.rand(1, n, 1, generator=generator, dtype=torch.float64)
    mean = strength * torch.randn(10, n, 4, generator=generator, dtype=torch.float64)
    a, b = torch.triu_indices(10, 10, offset=1)
    jm = 2 - 2 * torch.exp(-((mean[a] - mean[b]) ** 2) / 8)
    return jm.permute(1, 0, 2).flatten(start_dim=1)


def clustered(n, seed):
    generator = torch.Generator().manual_seed(seed)
    centres = 3 * torch.randn(max(4, n // 8), 20, generator=generator, dtype=torch.float64)
    owner = torch.randint(len(centres), (n,), generator=generator)
    return centres[owner] + 0.3 * torch.randn(n, 20, generator=generator, dtype=torch.float64)


def noise(n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, 40, generator=generator, dtype=torch.float64)


POINTS = {"jm": jm_like, "clustered": clustered, "noise": noise}


def sample(seed=0, classes=4, channels=6, positions=3, size=400):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % classes
    centres = torch.randn(classes, channels, positions, generator=generator, dtype=torch.float64)
    spread = 0.5 + torch.rand(classes, channels, positions, generator=generator).double()
    noise = torch.randn(size, channels, positions, generator=generator, dtype=torch.float64)
    return centres[labels] + spread[labels] * noise, labels


def many_classes(classes=40, channels=24, positions=2, seed=0):
    """Moments of channels that respond to a few directions in common, as those of a network do."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(classes, 6, positions, generator=generator, dtype=torch.float64)
    mixing = torch.randn(6, channels, generator=generator, dtype=torch.float64)
    mean = torch.einsum("cdp,dn->cnp", directions, mixing) / 2
    variance = 0.5 + torch.rand(classes, channels, positions, generator=generator, dtype=torch.float64)
    return ClassMoments(torch.full((classes,), 50), mean, variance * 50)


def some_weights(n, seed):
    return 3 * torch.rand(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
