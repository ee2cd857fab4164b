import pytest


@pytest.fixture(scope="session")
def distances(distances_of):
    """Of 32 points in clusters."""
    return distances_of("clustered", 32)
