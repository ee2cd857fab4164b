import pytest
import torch

from acsp_lightning.zoo import RestartingStepLR


def optimizer(*rates: float) -> torch.optim.SGD:
    groups = [{"params": [torch.zeros(1, requires_grad=True)], "lr": rate} for rate in rates]
    return torch.optim.SGD(groups)


def rates(schedule: RestartingStepLR, epochs: int) -> list[list[float]]:
    found = []
    for _ in range(epochs):
        found.append([group["lr"] for group in schedule.optimizer.param_groups])
        schedule.optimizer.step()
        schedule.step()
    return found


def test_rates_of_two_epochs_after_every_cut() -> None:
    schedule = RestartingStepLR(optimizer(0.01), period=2, step_size=1, start=1, before=0.0)
    assert rates(schedule, 7) == [[0.0], [0.01], [0.005], [0.01], [0.005], [0.01], [0.005]]


def test_rates_of_three_epochs_after_every_cut() -> None:
    schedule = RestartingStepLR(optimizer(0.003), period=3, step_size=2)
    assert rates(schedule, 6) == [[0.003], [0.003], [0.0015]] * 2


def test_every_group_keeps_its_own_rate() -> None:
    schedule = RestartingStepLR(optimizer(1.0, 10.0), period=2, step_size=1, gamma=0.1)
    assert rates(schedule, 3) == [[1.0, 10.0], [0.1, 1.0], [1.0, 10.0]]


def test_interrupted_is_uninterrupted() -> None:
    def make() -> RestartingStepLR:
        return RestartingStepLR(optimizer(0.01), period=3, step_size=1, start=2, before=0.5)

    whole = rates(make(), 9)
    first = make()
    begun = rates(first, 4)
    second = make()
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert begun + rates(second, 5) == whole


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"period": 2, "step_size": 2}, "step_size is 2 and period 2"),
        ({"period": 2, "step_size": 0}, "step_size is 0"),
        ({"period": 2, "step_size": 1, "gamma": -0.5}, "must be at least 0"),
        ({"period": 2, "step_size": 1, "start": -1}, "must be at least 0"),
    ],
)
def test_impossible_schedules_are_refused(options, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        RestartingStepLR(optimizer(0.01), **options)
