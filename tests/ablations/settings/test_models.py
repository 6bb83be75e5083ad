"""What a result depends on is digested byte by byte."""

from __future__ import annotations

from pathlib import Path

from ablations.settings.models import digest_of


def test_a_digest_changes_with_any_byte(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    file.write_bytes(bytes(1000))
    before = digest_of([tmp_path])
    assert digest_of([tmp_path]) == before
    file.write_bytes(bytes(500) + b"1" + bytes(499))
    assert digest_of([tmp_path]) != before
