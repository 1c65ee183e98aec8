"""Which links of a saved state stand elsewhere in the state that it is for: by their names, since nothing else says it."""

from collections.abc import Iterable, Mapping

from optchain.core.slot import is_link_name
from optchain.core.slot_paths import Names, SlotPaths

NOWHERE = ("",)
"""The place of no entry."""


def moved_links(saved: SlotPaths, wanted: SlotPaths) -> dict[Names, Names]:
    """The saved paths of links that stand elsewhere now, by the new ones: those of a name that only one on each side has."""
    before, now = _links(saved), _links(wanted)
    pairs = _by_names(before, now)
    fields = _fields(saved), _fields(wanted)
    pairs |= _moved_owners(before, now, pairs, *fields)
    pairs |= _moved_without_links(*fields, pairs)
    moved = {}
    for names in wanted.leaves:
        owner, field, rest = wanted.split(names)
        if owner in pairs:
            moved[names] = (*pairs[owner], field, *rest)
        elif owner in pairs.values():
            moved[names] = NOWHERE  # what was here is elsewhere now
    return moved | _moved_rates(saved, wanted, moved)


def _by_names(before: Iterable[Names], now: Iterable[Names]) -> dict[Names, Names]:
    """The saved places of links that stand elsewhere now: the only ones of a name, or else of a name in a group of one name."""
    left, missing, pairs = set(before) - set(now), set(now) - set(before), dict[Names, Names]()
    for length in range(1, max(map(len, missing), default=0) + 1):
        olds = _by_end(left - set(pairs.values()), length)
        for end, owners in _by_end(missing - pairs.keys(), length).items():
            if len(owners) == len(olds.get(end, [])) == 1:
                pairs[owners[0]] = olds[end][0]
    return pairs


def _by_end(owners: Iterable[Names], length: int) -> dict[Names, list[Names]]:
    """Links by the last names of their places; what has no name of its own by that alone."""
    found: dict[Names, list[Names]] = {}
    for owner in owners:
        name = _link_name(owner)
        if length == 1 or (name and len(owner) >= length):
            found.setdefault((*owner[:-1], name)[-length:], []).append(owner)
    return found


def _moved_rates(saved: SlotPaths, wanted: SlotPaths, moved: Mapping[Names, Names]) -> dict[Names, Names]:
    """The rate that has no other place: that of a chain whose links are in another one now, or of a link, now of its chain."""
    used = {moved.get(names, names) for names in wanted.leaves}
    found: dict[Names, Names] = {}
    for group in ("hyperparams", "scheduled"):
        end = (group, "learning_rate")
        left = [names for names in _ending(saved, end) if names not in used]
        missing = [names for names in _ending(wanted, end) if moved.get(names, names) not in saved.leaves]
        if len(left) == len(missing) == 1:
            (old,), (new,) = left, missing
            found[new] = old
            old_count, new_count = (*old[:-2], "count"), (*new[:-2], "count")
            if group == "scheduled" and moved.get(new_count, new_count) not in saved.leaves and old_count not in used:
                found[new_count] = old_count
    return found


def _ending(slots: SlotPaths, end: Names) -> list[Names]:
    """The entries of links whose paths end so."""
    return [names for names in slots.leaves if names[-len(end) :] == end and not slots.lies_in_slot(names)]


def _moved_owners(
    before: Mapping[Names, str],
    now: Mapping[Names, str],
    pairs: Mapping[Names, Names],
    old_fields: Mapping[Names, set[str]],
    new_fields: Mapping[Names, set[str]],
) -> dict[Names, Names]:
    """The chains and gates that all their links moved with, by the new places: their counts, rates and schedules move too."""
    found: dict[Names, Names] = {}

    def stays(old: Names, owner: Names) -> bool:
        """Whether what one of the places has is at that on both sides, and not at the other: a gate came between, or went."""
        was, has = old_fields.get(old, set()), new_fields.get(owner, set())
        came = was <= new_fields.get(old, set()) and not was <= has
        return came or (has <= old_fields.get(owner, set()) and not has <= was)

    stayed = {owner: owner for owner in now if owner in before and owner not in pairs and owner}
    moved = dict(pairs)
    while moved:
        origins: dict[Names, set[Names]] = {}
        for owner, old in (stayed | moved).items():
            if owner and old and owner[-1] == old[-1]:
                origins.setdefault(owner[:-1], set()).add(old[:-1])
        moved = {
            owner: old
            for owner, (old, *others) in ((owner, tuple(olds)) for owner, olds in origins.items())
            if not others
            and owner != old
            and owner in now
            and old in before
            and owner not in {**pairs, **found}
            and not stays(old, owner)
            and sum(old in olds for olds in origins.values()) == 1
        }
        stayed = {owner: old for owner, old in stayed.items() if owner not in moved and owner not in moved.values()}
        found |= moved
    return found


def _moved_without_links(
    before: Mapping[Names, set[str]], now: Mapping[Names, set[str]], pairs: Mapping[Names, Names]
) -> dict[Names, Names]:
    """What has no name and no named links, such as a bare rule, and has a gate around it now or has it no more."""
    found = {}
    for old, fields in before.items():
        if _link_name(old) or old in pairs.values() or fields <= now.get(old, set()):
            continue
        fits = [
            owner
            for owner in now
            if owner not in pairs and not _link_name(owner) and fields <= now[owner]
            if owner not in before or not before[owner] <= now[owner]  # or what was there has its place there
        ]
        if len(fits) == 1:
            found[fits[0]] = old
    return found


def _fields(slots: SlotPaths) -> dict[Names, set[str]]:
    """The entries of each link, without its metrics."""
    found: dict[Names, set[str]] = {}
    for owner, field, _ in map(slots.split, slots.leaves):
        if field != "metrics":
            found.setdefault(owner, set()).add(field)
    return found


def _links(slots: SlotPaths) -> dict[Names, str]:
    """The places of links, each with its name; those that have none, the whole and what is within another, are alike.

    A node without any entry of a link, and with no link's name, is a layer.
    """
    places = map(slots.split, slots.leaves)
    owners = {owner for owner, field, _ in places if slots.is_field((*owner, field))}
    owners |= {names for names in slots.entries if names and is_link_name(names[-1]) and slots.is_entry(names)}
    return {owner: _link_name(owner) for owner in owners if not owner or not owner[-1].isdecimal()}


def _link_name(owner: Names) -> str:
    return "" if not owner or owner[-1] in ("inner", "state") else owner[-1]
