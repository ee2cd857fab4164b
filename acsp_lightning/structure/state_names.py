"""Names in a state dict, whatever wrappers stood around the network that it is of."""

from collections.abc import Collection, Iterable, Mapping

from acsp_lightning.structure.records import is_record

# Parts of a name that torch.compile, and DataParallel and its like, put before those of the network.
WRAPPERS = frozenset({"_orig_mod", "module"})


def bare(name: str) -> str:
    """A name without the parts that wrappers put into it."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


def matching_names(found: Iterable[str], own: Collection[str]) -> dict[str, str]:
    """What entries of a state dict are called in a module, by their names in the state dict.

    One wrapper around all of either is taken off. Else a name that the module has stays, and another one
    becomes the module's name that differs from it by wrappers alone, if there is one that no other entry
    claims. Records (:mod:`acsp_lightning.structure.records`) go where the other entries of their module
    go.
    """
    found = list(found)
    entries = _matching([n for n in found if not is_record(n)], {n for n in own if not is_record(n)})
    return {name: entries[name] if name in entries else _beside(name, entries) for name in found}


def _beside(record: str, names: Mapping[str, str]) -> str:
    owner, dot, own = record.rpartition(".")
    for name, match in names.items():
        rest = name.removeprefix(owner)
        if name.startswith(f"{owner}{dot}") and match.endswith(rest):
            return f"{match.removesuffix(rest)}.{own}".lstrip(".")
    return record


def _matching(found: list[str], own: Collection[str]) -> dict[str, str]:
    names = {name: name for name in found}
    if names.keys() == set(own):
        return names
    for outer in (f"{wrapper}." for wrapper in WRAPPERS):
        if {f"{outer}{name}" for name in own} == names.keys():
            return {name: name.removeprefix(outer) for name in found}
        if {f"{outer}{name}" for name in found} == set(own):
            return {name: f"{outer}{name}" for name in found}
    free = _by_bare_name(name for name in own if name not in names)
    strange = _by_bare_name(name for name in found if name not in own)
    for key, entries in strange.items():
        if len(entries) == len(free.get(key, ())) == 1:
            names[entries[0]] = free[key][0]
    return names


def _by_bare_name(names: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(bare(name), []).append(name)
    return groups


def behind(name: str, prefix: str) -> str | None:
    """The rest of a name that begins with a prefix, wrappers not counting; None if it does not."""
    if name.startswith(prefix):
        return name[len(prefix) :]
    start = f"{bare(prefix.rstrip('.'))}."
    return bare(name)[len(start) :] if bare(name).startswith(start) else None


def common_prefixes(names: Iterable[str], longer: Iterable[str]) -> list[str]:
    """What stands before every one of ``names`` in ``longer``, wrappers not counting."""
    wanted, there = {bare(name) for name in names}, dict.fromkeys(map(bare, longer))
    first = min(wanted, default="")
    prefixes = [name.removesuffix(first) for name in there if name.endswith(f".{first}")]
    return [prefix for prefix in prefixes if all(f"{prefix}{name}" in there for name in wanted)]
