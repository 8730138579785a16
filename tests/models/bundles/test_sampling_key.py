from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from pydantic import TypeAdapter

from models.bundles.sampling_key import BackboneKey, SamplingKey, differences
from models.diffusion.method import Method
from tests.sampling_keys import FIELDS, KEY, mutated


def test_the_fingerprint_is_what_it_was() -> None:
    """Whoever changes the canonical form loses every certificate that was ever passed."""
    assert KEY.document() == {
        "backbone": {"weights": "sha256:w", "schedule": "sha256:s"},
        "method": {},
        "parts": {"judge": "sha256:j"},
    }
    assert KEY.fingerprint() == (
        "sha256:6b6363a5d956f99e384c7ae2b487ee97cd3bb8b2daf09c434ae1581f4ddb4a33"
    )


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_is_part_of_it(path: str) -> None:
    other = mutated(KEY, path)
    assert other != KEY
    assert other.fingerprint() != KEY.fingerprint()
    assert {name[: len(path)] for name in differences(KEY, other)} == {path}
    assert TypeAdapter(SamplingKey).validate_python(other.document()) == other


@dataclass(frozen=True)
class LaterMethod(Method):
    """A method with a setting that came later."""

    churn: float = 0.0


@dataclass(frozen=True)
class Later(SamplingKey):
    """A key with a field that came later."""

    size: int | None = None


def test_what_comes_later_and_is_not_used_changes_no_key() -> None:
    later = Later(KEY.backbone, LaterMethod(), KEY.parts)
    assert later.fingerprint() == KEY.fingerprint()
    assert replace(later, size=1).fingerprint() != KEY.fingerprint()
    assert replace(later, method=LaterMethod(churn=1.0)).fingerprint() != KEY.fingerprint()


def test_one_value_has_one_spelling() -> None:
    one = replace(KEY, parts={"judge": "j", "guide": "g"}, guidance_scale=(1.0, 2.0))
    other = TypeAdapter(SamplingKey).validate_python(
        {
            "parts": {"guide": "g", "judge": "j"},
            "guidance_scale": [1, 2],
            "method": {"num_inference_steps": 50, "eta": 0},
            "backbone": {"schedule": "sha256:s", "dtype": "float32", "weights": "sha256:w"},
        }
    )
    assert other.fingerprint() == one.fingerprint()


def test_an_unknown_field_is_refused() -> None:
    with pytest.raises(ValueError, match="colour"):
        TypeAdapter(SamplingKey).validate_python(KEY.document() | {"colour": "red"})
    with pytest.raises(ValueError, match="weights"):
        TypeAdapter(BackboneKey).validate_python({"schedule": "s"})
