"""What only a store over a network can do: be raced for by other machines, be away, and come back.

All else that a store does is tested on S3 as on a disk, in ``test_store.py``.
"""

from __future__ import annotations

import multiprocessing
import socket
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import obstore
import pytest

from adapters.base_model import Base
from adapters.errors import GenerationConflict, StoreUnavailable
from adapters.intake import add_version
from adapters.manifest import Manifest
from adapters.releases import NewRelease
from adapters.store import MANIFEST, WEIGHTS, Store
from adapters.tasks import ClassificationTask
from tests.conftest import MakeAdapter
from tests.s3 import S3Server

MACHINES = 4
Add = Callable[[], Manifest]


@pytest.fixture
def store(s3: S3Server) -> Store:
    return Store(s3.make_bucket())


@pytest.fixture
def add(store: Store, make_adapter: MakeAdapter, tiny: Base, sentiment_task: ClassificationTask) -> Add:
    return lambda: add_version(store, "mood", make_adapter(), sentiment_task, tiny)


def release_at_once(place: str, machine: int, together: Any, outcomes: Any) -> None:
    """Be one of several machines that release for the first time, at the same moment."""
    store = Store(place)
    together.wait(timeout=60)
    try:
        store.release("mood", NewRelease(stable=1, by=f"machine {machine}"), expected_generation=0)
        outcomes.put(machine)
    except GenerationConflict:
        outcomes.put(None)


@pytest.mark.timeout(120)
def test_of_machines_that_release_at_the_same_time_one_wins(store: Store, add: Add) -> None:
    add()
    fresh = multiprocessing.get_context("spawn")
    together, outcomes = fresh.Barrier(MACHINES), fresh.Queue()
    machines = [
        fresh.Process(target=release_at_once, args=(store.place, machine, together, outcomes))
        for machine in range(MACHINES)
    ]
    for machine in machines:
        machine.start()
    told = [outcomes.get(timeout=60) for _ in machines]
    for machine in machines:
        machine.join()
    [winner] = [machine for machine in told if machine is not None]
    assert [release.by for release in store.history("mood")] == [f"machine {winner}"]


def test_a_store_is_under_its_prefix_alone(store: Store, add: Add) -> None:
    add()
    bucket = Store(store.place.removesuffix("/prefix"))
    paths = [entry["path"] for batch in obstore.list(bucket._objects) for entry in batch]
    assert paths
    assert all(path.startswith("prefix/mood/versions/1/") or path == "prefix/.pulse" for path in paths)


@pytest.mark.timeout(60)
def test_a_server_that_is_away_is_said_to_be_and_is_used_again_when_it_is_back(
    store: Store, add: Add, s3: S3Server, tmp_path: Path
) -> None:
    add()
    released = store.release("mood", NewRelease(stable=1))
    with s3.away():
        for call in (
            store.names,
            lambda: store.released("mood"),
            lambda: store.fetch("mood", 1, tmp_path),
            lambda: store.release("mood", NewRelease(stable=1)),
            add,
        ):
            with pytest.raises(StoreUnavailable, match=r"^the store s3://.* cannot be used: "):
                call()
    assert store.history("mood") == [released]
    assert store.fetch("mood", 1, tmp_path).is_dir()
    assert add().version == 2


@pytest.mark.timeout(60)
def test_a_server_that_is_overloaded_is_asked_again_a_few_times_not_for_minutes(store: Store, s3: S3Server) -> None:
    s3.requests.clear()
    s3.overloaded = True
    with pytest.raises(StoreUnavailable):
        store.names()
    assert 2 <= len(s3.requests) <= 5


@pytest.mark.parametrize("before", [WEIGHTS, MANIFEST])
def test_a_server_that_goes_away_during_an_upload_leaves_no_version(
    store: Store, add: Add, s3: S3Server, monkeypatch: pytest.MonkeyPatch, before: str
) -> None:
    put, interruption = obstore.put, ExitStack()

    def interrupted(objects: object, path: str, *rest: Any, **settings: Any) -> Any:
        if path.endswith(before):
            interruption.enter_context(s3.away())
        return put(objects, path, *rest, **settings)  # type: ignore[call-overload]

    with monkeypatch.context() as patch, interruption:
        patch.setattr(obstore, "put", interrupted)
        with pytest.raises(StoreUnavailable):
            add()
    assert store.versions("mood") == []
    assert add().version == 2


@pytest.mark.timeout(60)
def test_a_server_that_never_answers_is_given_up_after_the_operator_s_timeout(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_TIMEOUT", "100ms")
        with pytest.raises(StoreUnavailable):
            Store(store.place).names()


def test_a_bucket_that_is_not_there_is_said_to_be_missing(s3: S3Server) -> None:
    store = Store("s3://no-such-bucket")
    for call in (store.names, lambda: store.manifest("mood", 1), lambda: store.retire("mood", 1)):
        with pytest.raises(StoreUnavailable, match=r"cannot be used: NoSuchBucket: .*; make the bucket"):
            call()


@pytest.mark.parametrize("code", ["AccessDenied", "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "Odd"])
def test_what_the_server_refuses_is_said_by_its_code(store: Store, s3: S3Server, code: str) -> None:
    s3.refusal = code
    with pytest.raises(StoreUnavailable, match=f'cannot be used: {code}: It is "no"') as refused:
        store.names()
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("code", ["PermanentRedirect", "AuthorizationHeaderMalformed"])
def test_a_bucket_in_another_region_is_said_to_be_there(store: Store, s3: S3Server, code: str) -> None:
    s3.refusal = code
    with pytest.raises(StoreUnavailable, match="; set AWS_REGION to the bucket's"):
        store.names()


class TestAProfile:
    @pytest.fixture
    def place(self, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
        """A bucket, in an environment without keys and with files of profiles."""
        place = s3.make_bucket()
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION"):
            monkeypatch.delenv(name)
        credentials, config = tmp_path / "credentials", tmp_path / "config"
        credentials.write_text("[team]\naws_access_key_id = TEAMKEY\naws_secret_access_key = secret\n")
        token = '{"Version": 1, "AccessKeyId": "FROMPROCESS", "SecretAccessKey": "s"}'
        (tmp_path / "token").write_text(token)
        config.write_text(
            "[profile team]\nregion = eu-central-1\n"
            f"[profile process]\nregion = eu-central-1\ncredential_process = cat {tmp_path / 'token'}\n"
            "[profile broken]\ncredential_process = false\n"
            "[profile sso]\nsso_start_url = https://nowhere.invalid/start\nsso_region = eu-central-1\n"
            "sso_account_id = 1\nsso_role_name = reader\n"
        )
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(credentials))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        return place

    @pytest.mark.parametrize(("profile", "key"), [("team", "TEAMKEY"), ("process", "FROMPROCESS")])
    def test_is_used(self, place: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, profile: str, key: str) -> None:
        monkeypatch.setenv("AWS_PROFILE", profile)
        assert Store(place).names() == []
        assert set(s3.keys) == {key}

    def test_of_the_name_default_is_used_unasked(
        self, place: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        (tmp_path / "credentials").write_text("[default]\naws_access_key_id = MINE\naws_secret_access_key = s\n")
        assert Store(place).names() == []
        assert set(s3.keys) == {"MINE"}

    def test_is_passed_over_where_the_environment_has_keys(
        self, place: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name, value in {"PROFILE": "broken", "ACCESS_KEY_ID": "OWN", "SECRET_ACCESS_KEY": "secret"}.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        assert Store(place).names() == []
        assert set(s3.keys) == {"OWN"}

    @pytest.mark.timeout(20)
    @pytest.mark.parametrize("profile", ["nobody", "broken", "sso"])
    def test_that_gives_no_credentials_is_said_at_once(
        self, place: str, s3: S3Server, monkeypatch: pytest.MonkeyPatch, profile: str
    ) -> None:
        monkeypatch.setenv("AWS_PROFILE", profile)
        with pytest.raises(StoreUnavailable, match=f"the AWS profile '{profile}' gives no credentials: .*; mend it"):
            Store(place)

    def test_needs_boto3_which_is_said_at_once(self, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_PROFILE", "team")
        monkeypatch.setitem(sys.modules, "botocore.session", None)
        with pytest.raises(StoreUnavailable, match="profile 'team' needs boto3: pip install boto3, or set AWS_"):
            Store(place)

    def test_is_nothing_to_a_store_on_a_disk(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("AWS_PROFILE", "nobody")
        assert Store(tmp_path / "store").names() == []
