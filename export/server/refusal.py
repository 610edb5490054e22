"""A request that is not answered: the status, and the words that its sender gets."""

from collections.abc import Mapping

KINDS = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}
LONGEST_MESSAGE = 2000
SERVER_ERRORS = 500
"""Statuses from here on are the server's fault."""


class RefusedError(Exception):
    """A request is refused; nothing of the inside stands in it.

    Args:
        status: of HTTP.
        message: says what to change.
        param: the field that it is about.
        code: for programs.
        headers: that come with it.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.headers = dict(headers or {})

    @property
    def document(self) -> dict[str, object]:
        """The error in OpenAI's form."""
        usual = "server_error" if self.status >= SERVER_ERRORS else "invalid_request_error"
        message = self.message
        if len(message) > LONGEST_MESSAGE:
            message = message[:LONGEST_MESSAGE] + " ..."
        return {
            "error": {
                "message": message,
                "type": KINDS.get(self.status, usual),
                "param": self.param,
                "code": self.code,
            }
        }


def bad_request(where: str, problem: str, code: str | None = None) -> RefusedError:
    """Return the refusal of a field of a request."""
    return RefusedError(400, f"{where}: {problem}", param=where, code=code)
