"""Who may do what: tokens, private and gated repositories, and how the Hub says no.

The status codes, `X-Error-Code` and messages are those of the real Hub, because the client makes
its exception classes from them. One difference: to an anonymous caller the Hub answers 401 without
a code, which the client takes for "no such repository" on https only; here it says so on http.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from tests.support.hub.repos import Commit, Repository

ME = "me"
WRITE = "hf_write"  # a token of user `me` that may write
READ = "hf_read"  # a token of user `me` that may only read
STRANGER = "hf_stranger"  # a token of user `stranger`, who may write to nothing of `me`


@dataclass(frozen=True)
class User:
    """The one who calls: nobody without a token, else a user with the rights of the token."""

    name: str | None = None
    role: str = "read"
    organizations: tuple[str, ...] = ()

    @property
    def namespaces(self) -> tuple[str, ...]:
        return (self.name, *self.organizations) if self.name else ()


USERS = {
    WRITE: User(ME, "write", ("my-org",)),
    READ: User(ME, "read", ("my-org",)),
    STRANGER: User("stranger", "write"),
}


class Refused(Exception):
    """An answer that says no, as the Hub gives it."""

    def __init__(
        self, status: int, message: str, code: str | None = None, **headers: str | None
    ) -> None:
        super().__init__(message)
        self.status, self.message = status, message
        self.headers = {"X-Error-Message": message}
        if code:
            self.headers["X-Error-Code"] = code
        self.headers |= {k.replace("_", "-"): v for k, v in headers.items() if v is not None}

    def response(self) -> Response:
        return JSONResponse({"error": self.message}, self.status, self.headers)


def caller(request: Request) -> User:
    """The user behind the request's token."""
    header = request.headers.get("authorization")
    if header is None:
        return User()
    token = header.removeprefix("Bearer ")
    if token not in USERS:
        raise Refused(401, "Invalid credentials in Authorization header")
    return USERS[token]


def may_see(user: User, repository: Repository) -> bool:
    """Whether the user may know that the repository exists."""
    return not repository.private or owns(user, repository) or user.name in repository.readers


def owns(user: User, repository: Repository) -> bool:
    return repository.owner in user.namespaces


def visible(repositories: dict[str, Repository], name: str, user: User) -> Repository:
    """The repository, if it exists and the user may know it."""
    repository = repositories.get(name)
    if repository is not None and may_see(user, repository):
        return repository
    if user.name is None:
        raise Refused(401, "Invalid username or password.", "RepoNotFound")
    raise Refused(404, "Repository not found", "RepoNotFound")


def check_gate(repository: Repository, user: User) -> None:
    """Refuse the content of a gated repository to whoever was not let in."""
    if not repository.gated or owns(user, repository) or user.name in repository.readers:
        return
    restricted = f"Access to model {repository.id} is restricted"
    if user.name is None:
        hint = "You must have access to it and be authenticated to access it. Please log in."
        raise Refused(401, f"{restricted}. {hint}", "GatedRepo")
    hint = f"Visit https://huggingface.co/{repository.id} to ask for access."
    raise Refused(403, f"{restricted} and you are not in the authorized list. {hint}", "GatedRepo")


def check_write(repository: Repository, user: User) -> None:
    """Refuse to change a repository: by nobody, another user, or a token that only reads."""
    if user.name is None:
        raise Refused(401, "Invalid username or password.")
    if not owns(user, repository) or user.role != "write":
        raise Refused(
            403, "Forbidden: pass `create_pr=1` as a query parameter to create a Pull Request"
        )


def commit_of(repository: Repository, revision: str) -> Commit:
    commit = repository.find(revision)
    if commit is None:
        raise Refused(404, f"Invalid rev id: {revision}", "RevisionNotFound")
    return commit


def whoami(user: User) -> dict[str, Any]:
    return {
        "type": "user",
        "id": f"id-of-{user.name}",
        "name": user.name,
        "fullname": str(user.name).title(),
        "email": f"{user.name}@example.com",
        "emailVerified": True,
        "canPay": False,
        "isPro": False,
        "orgs": [
            {"type": "org", "id": f"id-of-{o}", "name": o, "fullname": o, "roleInOrg": "write"}
            for o in user.organizations
        ],
        "auth": {
            "type": "access_token",
            "accessToken": {
                "displayName": "a token",
                "role": user.role,
                "createdAt": "2026-01-01T00:00:00.000Z",
            },
        },
    }
