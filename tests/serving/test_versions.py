"""Orders, plans and the state's file, without loading anything; and rollback from the shell."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.serving.versions import USER, eventually, publish
from widedeep.cli.main import main
from widedeep.errors import ConfigError
from widedeep.serving.registry import Registry
from widedeep.serving.versions import (
    Canary,
    Latest,
    NoVersion,
    Plan,
    ServingState,
    Specific,
    change_state,
    find_versions,
    is_canary_request,
    make_plan,
    read_state,
    roll_back,
    state_path,
    version_key,
)

VERSIONS = ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("state", "failed", "expected"),
    [
        (ServingState(), (), Plan(("4",), "4")),
        (ServingState(), ("4", "3"), Plan(("2",), "2")),
        (ServingState(withdrawn=("4",)), (), Plan(("3",), "3")),
        (ServingState(withdrawn=tuple(VERSIONS)), (), Plan((), None)),
        (ServingState(loaded=("1",)), (), Plan(("4", "1"), "4")),
        (ServingState(labels={"stable": "2"}), (), Plan(("2", "4"), "2")),
        (ServingState(labels={"stable": "2"}), ("2",), Plan(("4",), "4")),
        (ServingState(canary=Canary(version="4", share=0.1)), (), Plan(("3", "4"), "3")),
        (ServingState(shadow="4"), (), Plan(("3", "4"), "3")),
        (ServingState(shadow="4", withdrawn=("1", "2", "3")), (), Plan(("4",), "4")),
        (
            ServingState(labels={"stable": "4"}, canary=Canary(version="4", share=0.1)),
            (),
            Plan(("4",), "4"),
        ),
    ],
)
def test_what_is_loaded_and_who_answers(
    state: ServingState, failed: tuple[str, ...], expected: Plan
) -> None:
    assert make_plan(VERSIONS, Latest(1), state, failed) == expected


def test_specific_versions_are_served_and_no_other() -> None:
    assert make_plan(VERSIONS, Specific(["1", "3", "9"]), ServingState()) == Plan(("3", "1"), "3")
    for bad in ("12", []):
        with pytest.raises(ConfigError, match="expected a list of names"):
            Specific(bad)
    with pytest.raises(ConfigError, match="n=0"):
        Latest(0)


def test_versions_are_ordered_as_people_read_them(tmp_path: Path) -> None:
    for name in ("10", "9", "v2", "v10", ".v11", "_half", "2026-01-09", "2026-01-10"):
        (tmp_path / name).mkdir()
    (tmp_path / "11").touch()
    assert list(find_versions(tmp_path)) == ["9", "10", "2026-01-09", "2026-01-10", "v2", "v10"]
    assert version_key("v2") < version_key("v10") < version_key("v10.1")


def test_the_canary_s_share_of_ids_is_even() -> None:
    ids = [f"{n}" for n in range(20_000)]
    for share in (0.01, 0.5, 0.99):
        found = sum(is_canary_request(each, share) for each in ids) / len(ids)
        assert abs(found - share) < 4 * (share * (1 - share) / len(ids)) ** 0.5
    assert not any(is_canary_request(each, 0.0) for each in ids)
    assert all(is_canary_request(each, 1.0) for each in ids)


def test_withdrawing_a_version_takes_it_from_every_place() -> None:
    state = ServingState(
        loaded=("3", "4"),
        labels={"stable": "4", "blue": "3"},
        canary=Canary(version="4", share=0.5),
        shadow="4",
    )
    found = state.withdraw("4")
    assert found == ServingState(withdrawn=("4",), loaded=("3",), labels={"blue": "3"})
    assert found.load("4").withdrawn == ()
    assert found.set_label("stable", "4").withdrawn == ()
    assert found.set_canary("4", 0.1).withdrawn == ()
    assert found.set_shadow("4").withdrawn == ()


def test_the_state_is_kept_and_a_refused_change_changes_nothing(tmp_path: Path) -> None:
    path = state_path(tmp_path)
    assert read_state(path) == ServingState()
    state = change_state(path, lambda state: state.set_canary("2", 0.25))
    assert read_state(path) == state
    assert (state.changes, state.canary) == (1, Canary(version="2", share=0.25))
    with pytest.raises(ConfigError, match="share=2"):
        change_state(path, lambda state: state.set_canary("2", 2))
    assert read_state(path) == state
    for damaged in ("", "[]", '{"format": 2}', path.read_text().replace("0.25", '"x"')):
        path.write_text(damaged)
        with pytest.raises(ConfigError, match="a state that cannot be read"):
            read_state(path)


def test_rollback_goes_back_one_version_at_a_time(tmp_path: Path) -> None:
    for name in VERSIONS:
        (tmp_path / name).mkdir()
    assert [roll_back(tmp_path) for _ in range(3)] == ["3", "2", "1"]
    with pytest.raises(NoVersion, match="no version before '1'"):
        roll_back(tmp_path)
    assert roll_back(tmp_path, to="3") == "3"
    assert read_state(state_path(tmp_path)).withdrawn == ("2", "4")


def test_rollback_from_the_shell_is_followed_by_the_servers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "models"
    publish(root, "1", seed=1)
    publish(root, "2", seed=2)

    def serves(version: str) -> bool:
        with registry.lease("r") as served:
            return served.version == version and bool(served.rank(USER, candidates={"app": ["x"]}))

    with Registry(root, poll_s=0.02) as registry:
        assert registry.wait_ready(30)
        assert serves("2")
        assert main(["rollback", str(root)]) == 0
        told = capsys.readouterr().out
        assert "version 1 is requested" in told and "withdrawn: 2" in told
        eventually(lambda: serves("1"))
        assert main(["rollback", str(root)]) == 1
        assert "no version before '1' to go back to" in capsys.readouterr().err
        assert main(["rollback", str(root), "--to", "2", "--json"]) == 0
        assert json.loads(capsys.readouterr().out) == {
            "version": "2",
            "withdrawn": [],
            "state": "requested",
        }
        eventually(lambda: serves("2"))
    assert main(["rollback", str(root), "--to", "7"]) == 1
    assert main(["rollback", str(tmp_path / "nowhere")]) == 2
