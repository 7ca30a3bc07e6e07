"""Tokens for the places that models come from: from the environment, or pasted and kept in a file that only its owner may read."""

import json
import os
from pathlib import Path

from studio.errors import InvalidRequest, StorageError
from studio.store import writer

NAMES = {"hub": ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"), "civitai": ("CIVITAI_TOKEN",)}
LONGEST = 200


class Tokens:
    """Args: file: `tokens.json` in the data root."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def environment(self) -> dict[str, str]:
        """Return the variables that a download's process gets; what the app's own environment says counts first."""
        pasted = self._read()
        found = {}
        for site, names in NAMES.items():
            given = next((os.environ[name] for name in names if os.environ.get(name)), pasted.get(site, ""))
            if given:
                found[names[0]] = given
        return found

    def known(self) -> dict[str, str]:
        """Return for each site where its token comes from: `environment`, `pasted`, or "" for none; never the token."""
        pasted, found = self._read(), self.environment()
        return {
            site: "" if names[0] not in found else "environment" if any(map(os.environ.get, names)) else "pasted"
            for site, names in NAMES.items()
            if pasted is not None
        }

    def save(self, site: str, token: str) -> None:
        """Keep a token, or forget it if it is empty.

        Raises:
            InvalidRequest: if it cannot be one.
            StorageError: if the file cannot be written.
        """
        token = token.strip()
        if site not in NAMES:
            raise InvalidRequest("site", f"site={site!r} must be one of: {', '.join(NAMES)}")
        if len(token) > LONGEST or not token.isascii() or not token.isprintable() or " " in token:
            raise InvalidRequest(
                "token", f"token must be at most {LONGEST} letters and digits without spaces; copy it again"
            )
        kept = {name: value for name, value in (self._read() | {site: token}).items() if value}
        try:
            writer.write_file(self._file, json.dumps(kept).encode(), mode=0o600)
        except OSError as error:
            raise StorageError(f"the token could not be kept: {error.strerror or error}") from error

    def _read(self) -> dict[str, str]:
        try:
            found = json.loads(self._file.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return {str(k): str(v) for k, v in found.items()} if isinstance(found, dict) else {}
