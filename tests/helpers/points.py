"""Points to cluster: as layers have them, in clusters, and without any."""

import torch


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
