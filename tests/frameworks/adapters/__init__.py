"""One adapter for each client: ``ask(url, key, stream)`` returns the answer, or raises.

Each module is imported in the environment in which its libraries are installed.
"""

MODEL = "mistral-small-latest"
PROMPT = "Hello!"
MESSAGES = [{"role": "user", "content": PROMPT}]


def server_root(url: str) -> str:
    """Return the URL without its /v1, for the libraries that add it themselves."""
    return url.removesuffix("/v1")
