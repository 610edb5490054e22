"""Fetches a model by its hub id, and says why it cannot be had."""

import logging
from functools import cache
from pathlib import Path

from compressor.errors import ModelError, first_line

log = logging.getLogger(__name__)


@cache
def fetched(model_id: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    """Return the folder of a hub model in the hub's cache; files that are not there yet are fetched.

    The hub is asked once in a process whether it has the model, with a limit of time: a download tries again
    and again, and waits without end where nobody answers. If it cannot be asked, what the cache holds is
    taken, and the log says so.

    Args:
        model_id: owner/name.
        revision: branch, tag or commit; None: the default branch.
        patterns: of the files.

    Raises:
        ModelError: no hub id, no such model, or the hub cannot be reached and the cache has none.
    """
    from huggingface_hub import constants, snapshot_download
    from huggingface_hub.errors import HFValidationError, OfflineModeIsEnabled

    named = model_id if revision is None else f"{model_id} at revision {revision}"
    endpoint, unanswered = constants.ENDPOINT, None
    try:
        unanswered = _unanswered(model_id, revision)
        folder = Path(
            snapshot_download(
                model_id,
                revision=revision,
                allow_patterns=list(patterns),
                local_files_only=unanswered is not None,
            )
        )
    except HFValidationError as failure:
        problem = f"{model_id}: no such folder, and no hub id: {first_line(failure)}"
        raise ModelError([problem]) from failure
    except Exception as failure:
        _unanswered.cache_clear()
        raise ModelError([_problem(named, endpoint, unanswered, failure)]) from failure
    if not (unanswered is None or isinstance(unanswered, OfflineModeIsEnabled)):
        _say_cached(named, endpoint, first_line(unanswered), folder.name)
    return folder


@cache
def _unanswered(model_id: str, revision: str | None) -> Exception | None:
    """Return why the hub says nothing of a model; None: it has it."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError, RevisionNotFoundError

    try:
        HfApi().model_info(model_id, revision=revision, timeout=constants.HF_HUB_ETAG_TIMEOUT)
    except (HFValidationError, RevisionNotFoundError):
        raise
    except Exception as failure:  # noqa: BLE001 - of the HTTP client, whichever that is
        return failure
    return None


@cache
def _say_cached(named: str, endpoint: str, why: str, commit: str) -> None:
    """Say, once in a process, that a model is the one that the hub's cache holds."""
    log.warning(
        "%s: the hub (%s) could not be asked (%s): taken from its cache, at commit %s; it may have changed",
        *(named, endpoint, why, commit),
    )


def _problem(named: str, endpoint: str, unanswered: Exception | None, failure: Exception) -> str:
    """Return why a model cannot be had, with the remedy.

    Args:
        named: what was asked for.
        endpoint: address of the hub.
        unanswered: why the hub said nothing of the model; None: it has it.
        failure: of the download, or of the cache.
    """
    from huggingface_hub.errors import (
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(failure, RevisionNotFoundError):
        return f"{named}: the hub ({endpoint}) has no such revision of it: correct the name, or leave it out"
    if isinstance(unanswered, RepositoryNotFoundError):
        return (
            f"{named}: no such folder, and the hub ({endpoint}) shows no such model: correct the name, or "
            "log in (HF_TOKEN) if it is private or asks for consent"
        )
    if unanswered is None or isinstance(unanswered, HfHubHTTPError):
        reason = first_line(unanswered or failure)
        return f"{named}: cannot be fetched from the hub and is no local folder: {reason}"
    if isinstance(unanswered, OfflineModeIsEnabled):
        return (
            f"{named}: no such folder, the hub's cache does not hold it whole, and HF_HUB_OFFLINE forbids to "
            "ask the hub: give the local folder of a model, or unset HF_HUB_OFFLINE"
        )
    return (
        f"{named}: no such folder, the hub ({endpoint}) could not be reached ({first_line(unanswered)}), and "
        "its cache does not hold it whole: give the local folder of a model, or fetch it where there is a "
        "network and set HF_HUB_CACHE to that cache"
    )
