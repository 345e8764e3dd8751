"""What the tests share: the scripts run in process or as children, and the API's answers."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
EXPECTED = ROOT / "tests" / "expected"
SCRIPTS = sorted((ROOT / "examples").glob("0*.py"))
CHAT_URL = "https://api.mistral.ai/v1/chat/completions"
SETTINGS = ("MISTRAL_API_KEY", "MISTRAL_BASE_URL", "MISTRAL_TIMEOUT", "MISTRAL_LOG_FILE")


def transcript(name: str) -> str:
    """What the script must print, the time in example 3's stats left open."""
    return (EXPECTED / f"{name}.txt").read_text("utf-8")


def without_time(output: str) -> str:
    return re.sub(r"\d{4}-\d{2}-\d{2} \d{2}:\d{2}:\d{2}", "<YYYY-MM-DD HH:MM:SS>", output)


def completion(text: str, model: str = "mistral-small-latest") -> dict[str, Any]:
    """A chat completion in the real API's shape."""
    return {
        "id": "0123456789abcdef0123456789abcdef",
        "object": "chat.completion",
        "created": 1782199134,
        "model": model,
        "choices": [
            {
                "index": 0,
                "finish_reason": "stop",
                "message": {"role": "assistant", "content": text, "tool_calls": None},
            }
        ],
        "usage": {"prompt_tokens": 4, "completion_tokens": 36, "total_tokens": 40},
    }


def error_body(message: str, code: str | None = None) -> dict[str, Any]:
    return {"object": "error", "message": message, "type": "x", "param": None, "code": code}


def run_in_process(name: str, monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Run a script as ``python examples/NAME.py`` would, here; returns its exit code."""
    path = ROOT / "examples" / f"{name}.py"
    monkeypatch.setattr(sys, "argv", [str(path), *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    with pytest.raises(SystemExit) as exit_info:
        runpy.run_path(str(path), run_name="__main__")
    return int(exit_info.value.code or 0)


def child_environment(**changes: str) -> dict[str, str]:
    """This environment without anybody's settings, printing UTF-8."""
    plain = {"PYTHONIOENCODING": "utf-8", **dict.fromkeys(SETTINGS, "")}
    return {**os.environ, **plain, **changes}


def start(*arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.Popen[str]:
    """Start this Python with the arguments; stdout and stderr are pipes of UTF-8 text."""
    return subprocess.Popen(
        [sys.executable, *arguments],
        cwd=cwd,
        env=child_environment(**environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    )
