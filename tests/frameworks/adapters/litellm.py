"""litellm: a single call, and its Router with a second model to fall back to."""

from __future__ import annotations

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else it downloads a list of prices

import litellm

from . import MESSAGES, MODEL

SPARE = "mistral-large-latest"


def ask(url: str, key: str, stream: bool) -> str:
    result = litellm.completion(
        f"mistral/{MODEL}", MESSAGES, api_base=url, api_key=key, stream=stream
    )
    return _text(result, stream)


def ask_router(url: str, key: str, stream: bool) -> str:
    models = {
        name: {"model": f"mistral/{model}", "api_base": url, "api_key": key}
        for name, model in (("main", MODEL), ("spare", SPARE))
    }
    router = litellm.Router(
        [{"model_name": name, "litellm_params": params} for name, params in models.items()],
        fallbacks=[{"main": ["spare"]}],
    )
    return _text(router.completion("main", MESSAGES, stream=stream), stream)


def _text(result, stream: bool) -> str:
    if not stream:
        return result.choices[0].message.content
    return "".join(chunk.choices[0].delta.content or "" for chunk in result)
