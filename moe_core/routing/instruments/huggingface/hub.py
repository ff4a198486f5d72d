"""Whether the hub answers, asked before the library asks: without a network the library tries again for a minute."""

from __future__ import annotations

from threading import Thread

from moe_core.errors import ModelError

HUB_SECONDS = 2.0
"""Time for an answer: who mistyped a name, or is on a train, waits no longer for the error."""


def must_stay_offline(name: str) -> bool:
    """True where the model of this name can be taken from the cache alone, as the hub does not answer.

    Raises ModelError where it does not answer and the cache has no such model, ValueError for what cannot be a name.
    """
    from huggingface_hub import constants, try_to_load_from_cache

    is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    if not constants.HF_HUB_OFFLINE and _hub_answers():
        return False
    if not is_cached:
        why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "check this machine's network"
        raise ModelError(
            f"there is no folder {name!r} and no model of this name in the cache, and the hub is not reachable: {why}, "
            "or give the path of a folder"
        )
    return True


def _hub_answers() -> bool:
    """Any answer counts. In a thread, as the look-up of a name has no time limit of its own."""
    from huggingface_hub import constants, get_session

    answers: list[int] = []

    def ask() -> None:
        try:
            answers.append(get_session().head(constants.ENDPOINT, timeout=HUB_SECONDS).status_code)
        except Exception:  # whatever the network, a proxy or a certificate raises: there was no answer
            return

    asking = Thread(target=ask, daemon=True)
    asking.start()
    asking.join(HUB_SECONDS)
    return bool(answers)
