import pytest

from acsp_lightning.structure.state_names import bare, behind, common_prefixes, matching_names


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("weight", "weight"),
        ("_orig_mod.weight", "weight"),
        ("module.net._orig_mod.0.weight", "net.0.weight"),
        ("modules.net.my_orig_mod.weight", "modules.net.my_orig_mod.weight"),
    ],
)
def test_bare_names(name: str, expected: str) -> None:
    assert bare(name) == expected


@pytest.mark.parametrize(
    ("found", "own", "expected"),
    [
        (["a.w"], ["a.w"], ["a.w"]),
        (["a._orig_mod.w"], ["a.w"], ["a.w"]),
        (["a.w"], ["module.a._orig_mod.w"], ["module.a._orig_mod.w"]),
        (["module.a.w"], ["a._orig_mod.w"], ["a._orig_mod.w"]),
        (["a.w", "module.a.w"], ["a.w"], ["a.w", "module.a.w"]),  # the exact one, and one too many
        (["module.w", "_orig_mod.w"], ["w"], ["module.w", "_orig_mod.w"]),  # either could be meant
        (["module.w"], ["w", "_orig_mod.w"], ["module.w"]),
        (["b.w"], ["a.w"], ["b.w"]),
        (["module.w", "module.module.w"], ["w", "module.w"], ["w", "module.w"]),
        (
            ["w", "_orig_mod.w"],
            ["_orig_mod.w", "_orig_mod._orig_mod.w"],
            ["_orig_mod.w", "_orig_mod._orig_mod.w"],
        ),
    ],
)
def test_matching_names(found: list[str], own: list[str], expected: list[str]) -> None:
    assert matching_names(found, own) == dict(zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("name", "prefix", "rest"),
    [
        ("network.0.w", "network.", "0.w"),
        ("network._orig_mod.0.w", "network.", "_orig_mod.0.w"),
        ("_orig_mod.network.0.w", "network.", "0.w"),
        ("network.0.w", "network._orig_mod.", "0.w"),
        ("networks.0.w", "network.", None),
        ("teacher.network.0.w", "network.", None),
    ],
)
def test_what_is_behind_a_prefix(name: str, prefix: str, rest: str | None) -> None:
    assert behind(name, prefix) == rest


@pytest.mark.parametrize(
    ("names", "longer", "prefixes"),
    [
        (["a.w", "b.w"], ["net.a.w", "net.b.w", "other.a.w"], ["net."]),
        (["a.w"], ["x.net.a.w", "net._orig_mod.a.w", "a.w"], ["x.net.", "net."]),
        (["a.w", "b.w"], ["net.a.w", "other.b.w"], []),
        (["w"], ["bow"], []),
        ([], ["w"], []),
    ],
)
def test_common_prefixes(names: list[str], longer: list[str], prefixes: list[str]) -> None:
    assert common_prefixes(names, longer) == prefixes
