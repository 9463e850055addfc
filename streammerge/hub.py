"""The client of the Hugging Face Hub, and what its refusals mean, in words for people.

Everything that speaks to the Hub takes its client from here and makes its calls inside `refusals`,
so that each way to be refused has one message and one remedy.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import HfApi, constants
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from streammerge.errors import HubError, StreammergeError, printable
from streammerge.version import __version__

NETWORK_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
"""The base of all errors of the HTTP library that the client uses, whichever that is."""

LOG_IN = "Run `hf auth login`, set HF_TOKEN or give --token."
_QUOTA = ("storage", "quota", "limit", "billing", "payment", "upgrade")


def make_client(token: str | None = None) -> HfApi:
    """Return a client for HF_ENDPOINT, with the given token or the one that is logged in."""
    return HfApi(token=token, library_name="streammerge", library_version=__version__)


def make_headers(token: str | None) -> dict[str, str]:
    """Return what a request to the Hub says of us, and the token as for `make_client`."""
    return build_hf_headers(token=token, library_name="streammerge", library_version=__version__)


@contextmanager
def no_bars() -> Iterator[None]:
    """Keep the client from drawing progress bars of its own."""
    if are_progress_bars_disabled() or constants.HF_HUB_DISABLE_PROGRESS_BARS is False:
        yield
        return
    disable_progress_bars()
    try:
        yield
    finally:
        enable_progress_bars()


@contextmanager
def refusals(action: str, repo: str) -> Iterator[None]:
    """Turn whatever the client raises into a HubError that says what was being done.

    Args:
        action: what, as in "cannot <action> <repo>".
        repo: namespace/name of the repository.
    """
    try:
        yield
    except StreammergeError:
        raise
    except Exception as error:
        raise explain(error, action, repo) from error


def explain(error: Exception, action: str, repo: str) -> HubError:
    """Return the error of the client as one for people; see `refusals`."""
    cause = root_cause(error)
    reason, remedy = _refusal(cause, repo) or _failure(cause)
    return HubError(f"cannot {action} {repo}: {reason}", remedy)


def root_cause(error: Exception) -> Exception:
    """Return the error behind the client's wrapper around the failed upload of a file."""
    while isinstance(error, RuntimeError) and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return error


def status_of(error: Exception) -> int:
    """Return the HTTP status that the Hub answered with; 0 where there was no answer."""
    cause = root_cause(error)
    return cause.response.status_code if isinstance(cause, HfHubHTTPError) else 0


def _refusal(error: Exception, repo: str) -> tuple[str, str] | None:
    """Return reason and remedy of what the Hub says no to, whenever it is asked."""
    status, said = status_of(error), _server_message(error)
    if isinstance(error, LocalTokenNotFoundError):
        return "nobody is logged in", LOG_IN
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{repo}"
        return "the repository is gated", f"Ask for access at {page}. {LOG_IN}"
    if isinstance(error, DisabledRepoError):
        return "the Hub has disabled the repository", "Choose another one."
    if isinstance(error, RepositoryNotFoundError):
        remedy = f"Check the name. If it is private: {LOG_IN}"
        return "there is no such repository that you can see", remedy
    if isinstance(error, RevisionNotFoundError):
        return "there is no such branch, tag or commit", f"See {constants.ENDPOINT}/{repo}/commits."
    if isinstance(error, EntryNotFoundError):
        return "a file is not there", "Check its name and the revision."
    if status == 401:
        return "the token is not valid", f"It may be expired or revoked. {LOG_IN}"
    no_room = status in (402, 403, 413, 422) or isinstance(error, ValueError)
    if no_room and any(word in said.lower() for word in _QUOTA):
        return f"the Hub takes no more: {said}", "Free or buy storage, or choose another namespace."
    if status == 403:
        return f"the token may not do that: {said}", "Use a token with write access."
    return None


def _failure(error: Exception) -> tuple[str, str]:
    """Return reason and remedy of what may go well another time."""
    status, said = status_of(error), _server_message(error)
    if isinstance(error, OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE is set", "Unset it to reach the Hub."
    if status == 429:
        return "too many requests", "Wait a few minutes, then try again."
    if status >= 500:
        return f"the Hub failed ({status}): {said}", "Try again later."
    if status:
        return f"the Hub refused ({status}): {said}", "See what it says, then run it again."
    if isinstance(error, NETWORK_ERROR | ConnectionError | TimeoutError):
        remedy = f"Check the network and {constants.ENDPOINT}, then try again."
        return f"the Hub cannot be reached ({said})", remedy
    return said, "Try again."


def _server_message(error: Exception) -> str:
    if not isinstance(error, HfHubHTTPError):
        return _text(error)
    header = error.response.headers.get("x-error-message")
    return printable(error.server_message or header or _text(error))


def _text(error: Exception) -> str:
    return printable(" ".join(str(error).split())) or type(error).__name__
