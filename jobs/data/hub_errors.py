"""What goes wrong between Graft and the Hub, each in one sentence that says what to do. What is asked of the Hub, and
how its files are read, is jobs.data.hub's.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from jobs.errors import UserError

_HAVE_TOKEN = "set HF_TOKEN to a token of yours before Graft is started"


@contextmanager
def in_words(hub_id: str, seconds: float) -> Iterator[None]:
    """Whatever the Hub refuses or leaves unanswered becomes a UserError. `seconds`: how long an answer may take."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

    try:
        yield
    except HFValidationError as error:
        raise UserError(f"{hub_id!r} is not a Hub id; it should read owner/name.") from error
    except OfflineModeIsEnabled as error:
        raise UserError(
            f"Graft was started with HF_HUB_OFFLINE set, so it does not ask the Hub for {hub_id}. Start it without, or "
            "upload the dataset's file."
        ) from error
    except (HfHubHTTPError, httpx2.HTTPStatusError) as error:
        raise UserError(_refusal(hub_id, error)) from error
    except httpx2.TimeoutException as error:
        raise UserError(
            f"The Hugging Face Hub was asked for {hub_id} and said nothing for {seconds:.0f} s. "
            "Try again later, or upload the dataset's file."
        ) from error
    except httpx2.ConnectError as error:
        raise UserError(
            f"The Hugging Face Hub does not answer, so {hub_id} cannot be fetched. Check this machine's connection to "
            "the internet and its proxy, or upload the dataset's file."
        ) from error
    except httpx2.HTTPError as error:
        raise UserError(
            f"The connection to the Hugging Face Hub broke while {hub_id} was fetched ({type(error).__name__}). "
            "Try again, or upload the dataset's file."
        ) from error


def _refusal(hub_id: str, error: Exception) -> str:
    from huggingface_hub import get_token
    from huggingface_hub.errors import DisabledRepoError, GatedRepoError, RepositoryNotFoundError

    response = error.response  # type: ignore[attr-defined]
    status, headers = response.status_code, response.headers
    token = get_token() is not None
    if isinstance(error, GatedRepoError):
        then = "with the account that your HF_TOKEN belongs to" if token else f"then {_HAVE_TOKEN}"
        return f"{hub_id} is shown on the Hub only to people who accepted its terms: accept them on its page, {then}."
    if isinstance(error, DisabledRepoError):
        return f"The Hub has switched {hub_id} off for everybody. Choose another dataset."
    if status == 401 and token:
        return (
            "The Hub does not know the token in HF_TOKEN: it is mistyped, or was taken back or has expired. "
            "Make a new one on the Hub, under Settings, Access Tokens, and start Graft with it."
        )
    if isinstance(error, RepositoryNotFoundError) or status in (401, 404, 410):
        then = (
            "For a private one the token in HF_TOKEN must be allowed to read it" if token else f"If so, {_HAVE_TOKEN}"
        )
        return f"The Hub has no dataset {hub_id!r}, or it is private. Check the name. {then}."
    if status == 403:
        then = "give the token in HF_TOKEN the right to read it" if token else _HAVE_TOKEN
        return f"The Hub does not let you read {hub_id} (403). Ask its owner for access, and {then}."
    if status == 429:
        wait = headers.get("Retry-After", "")
        soon = f"in {int(wait):,} seconds" if wait.isdecimal() else "in a few minutes"
        more = "" if token else f" The Hub allows more to those it knows: {_HAVE_TOKEN}."
        return f"The Hub was asked too often from this address and refuses {hub_id} for now. Try again {soon}.{more}"
    if status >= 500:
        return (
            f"The Hub itself is in trouble and cannot give {hub_id} now ({status}). "
            "Try again in a few minutes, or upload the dataset's file."
        )
    return f"The Hub refuses to give {hub_id} ({status}). Check the name, or upload the dataset's file."
