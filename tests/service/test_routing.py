"""Who gets which version: pure, so it is held to its rules over catalogues and releases that nobody thought of."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapters.catalogue import Catalogue, Entry
from adapters.reference import Reference
from adapters.releases import Release, Share
from service.errors import AdapterNotFound, VersionNotFound
from service.serving.routing import Choice, Routing
from tests.properties import quick

VERSIONS = range(1, 7)
numbers = st.sampled_from(VERSIONS)
callers = st.text(max_size=20)
percents = st.integers(1, 100)


def release(generation: int = 1, **served: Any) -> Release:
    return Release(by="ann", at=datetime(2026, 1, 1, tzinfo=UTC), generation=generation, **served)


@st.composite
def releases(draw: st.DrawFn, versions: tuple[int, ...]) -> Release | None:
    stable = draw(st.sampled_from(versions))
    others = [version for version in versions if version != stable]
    share = st.builds(Share, version=st.sampled_from(others), percent=percents) if others else st.none()
    canary, shadow = draw(st.none() | share), draw(st.none() | share)
    return release(draw(st.integers(1, 9)), stable=stable, canary=canary, shadow=shadow)


@st.composite
def routings(draw: st.DrawFn) -> Routing:
    """An adapter ``mood`` in any state that a store can have it in, served as released, or still as before."""
    routing = Routing()
    versions = tuple(sorted(draw(st.sets(numbers))))
    one = releases(versions) if versions else st.none()
    newest, served = draw(st.none() | one), draw(st.none() | one)
    named = newest.versions if newest else ()
    retired = draw(st.frozensets(numbers)) - set(named)
    routing.catalogue = Catalogue({"mood": Entry("mood", versions, 1 if newest else 0, newest, retired)})
    if served is not None:
        routing.flip("mood", served)
    return routing


def choose(routing: Routing, reference: Reference, caller: str) -> Choice | type[Exception]:
    try:
        return routing.choose(reference, caller)
    except (AdapterNotFound, VersionNotFound) as error:
        return type(error)


@quick
@given(
    routings(), st.builds(Reference, st.just("mood"), st.none() | numbers) | st.just(Reference("mood", None, "canary"))
)
def test_whatever_is_asked_for_gets_a_version_that_may_be_served_or_an_error(
    routing: Routing, reference: Reference
) -> None:
    choice = choose(routing, reference, "ann")
    entry, served = routing.catalogue.get("mood"), routing.served("mood")
    if not isinstance(choice, Choice):
        return
    assert choice == choose(routing, reference, "ann")
    assert not routing.is_retired(*choice.key)
    assert choice.routed == (reference.version is None and reference.channel is None)
    if reference.version is not None:
        assert (choice.version, choice.channel) == (reference.version, "pinned")
        assert choice.version in entry.versions
        return
    current = served or entry.release
    assert current is not None
    expected = current.stable if choice.channel == "stable" else current.canary and current.canary.version
    assert choice.version == expected
    assert reference.channel in (None, choice.channel)


@quick
@given(routings(), numbers)
def test_a_number_that_is_unknown_or_retired_is_refused(routing: Routing, number: int) -> None:
    entry = routing.catalogue.get("mood")
    served = routing.served("mood")
    available = number in entry.versions and (
        number not in entry.retired or (served is not None and number in served.versions)
    )
    choice = choose(routing, Reference("mood", number), "ann")
    assert isinstance(choice, Choice) == available
    if not available:
        assert choice is (VersionNotFound if entry.versions or number in entry.retired else AdapterNotFound)


@quick
@given(callers, percents, percents)
def test_a_caller_who_has_the_canary_keeps_it_when_its_share_grows(caller: str, one: int, other: int) -> None:
    low, high = sorted((one, other))
    routing = Routing()
    channels = []
    for percent in (low, high):
        routing.flip("mood", release(stable=1, canary=Share(version=2, percent=percent)))
        channels.append(routing.choose(Reference("mood"), caller).channel)
    assert channels != ["canary", "stable"]


@pytest.mark.parametrize("percent", [1, 10, 50, 100])
def test_the_share_of_callers_is_the_share_that_the_release_says(percent: int) -> None:
    routing, callers = Routing(), 20_000
    routing.flip("mood", release(stable=1, canary=Share(version=2, percent=percent)))
    canary = sum(routing.choose(Reference("mood"), f"user-{n}").channel == "canary" for n in range(callers))
    assert canary / callers == pytest.approx(percent / 100, abs=0.01)


def test_the_next_canary_is_given_to_others_and_so_is_that_of_another_adapter() -> None:
    routing, callers = Routing(), [f"user-{n}" for n in range(1000)]

    def taken(name: str, version: int) -> set[str]:
        routing.flip(name, release(stable=1, canary=Share(version=version, percent=20)))
        return {caller for caller in callers if routing.choose(Reference(name), caller).channel == "canary"}

    first = taken("mood", 2)
    for other in (taken("mood", 3), taken("brief", 2)):
        assert len(first & other) < 100  # of 200 each, 40 by chance


@quick
@given(st.lists(releases(tuple(VERSIONS)), min_size=1, max_size=6))
def test_a_flip_names_what_no_release_needs_any_more(served: list[Release]) -> None:
    routing = Routing()
    before: set[int] = set()
    for new in served:
        assert routing.flip("mood", new) == {("mood", version) for version in before - set(new.versions)}
        assert routing.served("mood") == new == routing.releases["mood"]
        before = set(new.versions)


def test_what_is_learnt_of_one_adapter_leaves_the_others_and_their_order() -> None:
    routing = Routing()
    for name in ("mood", "brief", "zest"):
        routing.learn(Entry(name, (1,)))
    routing.learn(Entry("mood", (1, 2)))
    assert [(entry.name, entry.versions) for entry in routing.catalogue] == [
        ("brief", (1,)),
        ("mood", (1, 2)),
        ("zest", (1,)),
    ]
