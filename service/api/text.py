"""Text that a caller sends: whole Unicode everywhere, and printable where the store keeps it."""

from __future__ import annotations

import re
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    field_validator,
    model_validator,
)
from pydantic_core import CoreSchema, PydanticCustomError

CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
SURROGATE = re.compile("[\ud800-\udfff]")


def _whole(text: str) -> str:
    if SURROGATE.search(text):
        raise PydanticCustomError(
            "surrogates", "must hold no surrogates, which are halves of a character"
        )
    return text


def unprintable(text: str) -> bool:
    """Whether a text holds a control character other than tab and line ends."""
    return CONTROL.search(text) is not None


def _printable(text: str) -> str:
    if unprintable(text):
        raise PydanticCustomError("control_characters", "must hold no control characters")
    return _whole(text)


PATTERN = r"^[^\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f]*$"

Text = Annotated[str, AfterValidator(_printable), Field(json_schema_extra={"pattern": PATTERN})]
"""PostgreSQL stores no NUL, and control characters would garble a log."""


ABOUT = ("title", "description", "default")
"""What a JSON schema says of a field, beside what the field may hold."""

ID = "^[A-Za-z0-9._-]{1,64}$"
ID_IN_WORDS = "letters, digits, dots, dashes and underscores alone, 1 to 64"
Id = Annotated[str, Field(pattern=ID, max_length=64)]
"""What the service called something: an image, a batch, a reward."""

INTEGERS = range(-(2**63), 2**63)
"""The integers of 64 bits, which any reader of JSON holds."""


class RequestBody(BaseModel):
    """A request body: every string in it is valid Unicode, every number finite, and every integer
    one of 64 bits.

    JSON may hold half of a surrogate pair, which no response, database or tokenizer takes. Null in
    a field that may be left out is that field left out, everywhere.
    """

    model_config = ConfigDict(allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _drop_nulls(cls, sent: Any) -> Any:
        if not isinstance(sent, dict) or None not in sent.values():
            return sent
        fields = cls.model_fields
        return {
            name: value
            for name, value in sent.items()
            if value is not None or name not in fields or fields[name].is_required()
        }

    @field_validator("*", mode="before")
    @classmethod
    def _of_whole_strings(cls, value: Any) -> Any:
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, str):
                _whole(one)
            elif isinstance(one, int) and one not in INTEGERS:
                raise PydanticCustomError("integer_size", "must be an integer of 64 bits")
        return value

    @classmethod
    def __get_pydantic_json_schema__(
        cls, core: CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """As pydantic's, with null for every field that may be left out."""
        schema = handler(core)
        found = handler.resolve_ref_schema(schema)
        for name, part in found.get("properties", {}).items():
            if name not in found.get("required", ()):
                _or_null(part)
        return schema


def _or_null(schema: dict[str, Any]) -> None:
    null = {"type": "null"}
    if "anyOf" not in schema:
        said = {name: schema.pop(name) for name in [*schema] if name not in ABOUT}
        schema["anyOf"] = [said]
    if null not in schema["anyOf"]:
        schema["anyOf"].append(null)
