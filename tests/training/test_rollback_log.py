import torch
from hypothesis import given
from hypothesis import strategies as st

from widedeep.training.step import RollbackLog

ROWS = 6
updates = st.lists(st.sets(st.integers(0, ROWS - 1), min_size=1), max_size=6)


@given(before=updates, after=updates, later=updates)
def test_undo_brings_back_the_mark(
    before: list[set[int]], after: list[set[int]], later: list[set[int]]
) -> None:
    weights, state, bias = torch.zeros(ROWS, 2), torch.ones(ROWS, 3), torch.zeros(2)
    log = RollbackLog()
    log.track("table", {"weight": weights, "state": state})
    log.track_small({"bias": bias})

    def run(steps: list[set[int]]) -> None:
        for rows in steps:
            chosen = torch.tensor(sorted(rows))
            log.before_update("table", chosen)
            weights[chosen] += torch.rand(len(rows), 2)
            state[chosen] *= 2
            bias.add_(1)

    run(before)
    log.restore()  # nothing was marked yet: nothing moves
    log.mark()
    held = weights.clone(), state.clone(), bias.clone()
    run(after)
    log.restore()
    assert torch.equal(weights, held[0])
    assert torch.equal(state, held[1])
    assert torch.equal(bias, held[2])
    run(later)
    log.restore()
    assert torch.equal(weights, held[0])


def test_remembers_only_touched_rows() -> None:
    weights = torch.zeros(1000, 2)
    log = RollbackLog()
    log.track("table", {"weight": weights})
    log.mark()
    for _ in range(5):
        log.before_update("table", torch.tensor([3, 5]))
    assert sum(len(rows) for rows in log._journals["table"].rows) == 2
