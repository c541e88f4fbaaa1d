"""Which rank is to blame for a hang, from the signs of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from pretrain.health.signs import Sign, Verdict

_NAMED = 8


def find_culprits(signs: Mapping[int, Sign], world: int) -> list[int]:
    """Ranks that the others wait for; empty if every rank has arrived in a collective that does not end.

    In this order: ranks without a sign, or that did not answer the alarm (they are stopped, or hold the
    interpreter); else ranks that are furthest behind; of these, those that do not themselves wait in a collective.
    """
    silent = [rank for rank in range(world) if rank not in signs or not signs[rank].answered]
    if silent:
        return silent
    least = min(sign.count for sign in signs.values())
    behind = [rank for rank, sign in signs.items() if sign.count == least]
    at_work = [rank for rank in behind if not signs[rank].waiting]
    return at_work if at_work or len(behind) == world else behind


def pronounce(signs: Mapping[int, Sign], world: int, finder: int, state: Callable[[Sign], str]) -> Verdict:
    """The verdict in one line. `finder`: the rank that raised the alarm; `state` says more of a process."""
    culprits = find_culprits(signs, world)
    mine = signs[finder]
    if not culprits:
        where = f"in {mine.phase} of step {mine.step} for {mine.seconds:.0f} s"
        return Verdict(
            (), f"all {world} ranks wait for each other {where}: a collective hangs, or they are in different ones"
        )
    told = [_told(rank, signs.get(rank), state) for rank in culprits[:_NAMED]]
    more = f", and {len(culprits) - _NAMED} more ranks" if len(culprits) > _NAMED else ""
    hang = "hangs" if len(culprits) == 1 else "hang"
    waited = (
        "" if finder in culprits else f"; rank {finder} waited {mine.seconds:.0f} s in {mine.phase} of step {mine.step}"
    )
    return Verdict(tuple(culprits), f"{', '.join(told)}{more} {hang}{waited}")


def _told(rank: int, sign: Sign | None, state: Callable[[Sign], str]) -> str:
    if sign is None:
        return f"rank {rank} (it never gave a sign of life)"
    where = f"{sign.phase} of step {sign.step}"
    if sign.answered:
        return f"rank {rank} on {sign.host} (in {where} for {sign.seconds:.0f} s)"
    said = state(sign)
    return f"rank {rank} on {sign.host} (no sign of life{f', {said}' if said else ''}, last seen in {where})"
