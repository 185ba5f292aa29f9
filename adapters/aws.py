"""Credentials for S3 from a profile: ``AWS_PROFILE`` and ``~/.aws``, with SSO, roles and ``credential_process``.

The store's own library knows keys in the environment, and what containers and machines of AWS are given. Profiles
are boto3's: an extra (``hotswap[s3]``) that is needed where one is asked for.
"""

from __future__ import annotations

import configparser
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from adapters.errors import StoreUnavailable

FILES = {"AWS_SHARED_CREDENTIALS_FILE": "~/.aws/credentials", "AWS_CONFIG_FILE": "~/.aws/config"}
# A section with one of these says where credentials are to come from; one with a region alone does not.
SOURCES = ("aws_access_key_id", "credential_process", "sso_session", "sso_start_url", "role_arn", "login_session")
# With one of these the library has, or needs, no profile: it is what boto3 prefers to one as well.
INSTEAD = ("AWS_ACCESS_KEY_ID", "AWS_SKIP_SIGNATURE")
WITHOUT = "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (aws configure export-credentials --format env)"


def profile_options(environment: Mapping[str, str] = os.environ) -> dict[str, Any]:
    """Return what opens S3 with the profile that the environment asks for; nothing where it asks for none.

    Raises :class:`StoreUnavailable`, before anything is waited for, where the profile cannot be used.
    """
    profile = environment.get("AWS_PROFILE") or environment.get("AWS_DEFAULT_PROFILE")
    if any(environment.get(name) for name in INSTEAD) or not (profile or _default_profile(environment)):
        return {}
    called = f"the AWS profile '{profile or 'default'}'"
    try:
        import botocore.session
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError:
        raise StoreUnavailable(f"{called} needs boto3: pip install boto3, {WITHOUT}.") from None
    try:
        session = botocore.session.Session(profile=profile)
        provider = Boto3CredentialProvider(session)
        provider()
        settings = session.get_scoped_config()
    except (BotoCoreError, ValueError) as error:
        raise StoreUnavailable(f"{called} gives no credentials: {error}; mend it, {WITHOUT}.") from error
    options = {"region": settings.get("region"), "endpoint": settings.get("endpoint_url")}
    overridden = {
        "region": environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION"),
        "endpoint": environment.get("AWS_ENDPOINT_URL_S3") or environment.get("AWS_ENDPOINT_URL"),
    }
    given = {name: value for name, value in options.items() if value and not overridden[name]}
    return {"credential_provider": provider, **given}


def _default_profile(environment: Mapping[str, str]) -> bool:
    """Whether the default profile says where credentials come from."""
    for variable, usual in FILES.items():
        parser = configparser.RawConfigParser(strict=False)
        try:
            parser.read(Path(environment.get(variable) or usual).expanduser(), encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError, OSError, RuntimeError):
            continue
        if parser.has_section("default") and any(source in parser["default"] for source in SOURCES):
            return True
    return False
