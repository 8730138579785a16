"""A request's body: its media type, and JSON that means one thing alone."""

from __future__ import annotations

import json
from collections import Counter
from email.message import Message
from typing import Any

from starlette.datastructures import Headers

from service.errors import InvalidValue, UnsupportedMedia, shown

JSON = "application/json"
UTF8 = ("utf-8", "utf8", "us-ascii")


def check_encoding(headers: Headers) -> None:
    """Raises UnsupportedMedia for a body that is compressed, or in another charset than UTF-8."""
    for field, plain in (("Content-Encoding", "identity"), ("Transfer-Encoding", "chunked")):
        encodings = ",".join(headers.getlist(field))
        if encodings.strip().lower() not in ("", plain):
            raise UnsupportedMedia(
                f"{shown(encodings)} is not read here: send the body as it is, without compression",
                field,
            )
    if headers.get("content-type") == JSON:
        return
    charset = _media(headers).get_param("charset", "utf-8")
    if str(charset).lower() not in UTF8:
        raise UnsupportedMedia("charset must be utf-8", "Content-Type")


def media_type(headers: Headers) -> str | None:
    """The media type that a body has by its head, in small letters and without parameters."""
    given = headers.get("content-type")
    return None if given is None else given.partition(";")[0].strip().lower()


def check_json(headers: Headers) -> None:
    """Raises UnsupportedMedia for a body that does not say that it is JSON in UTF-8."""
    check_encoding(headers)
    if headers.get("content-type") == JSON:
        return
    media = _media(headers)
    kind, subtype = media.get_content_maintype(), media.get_content_subtype()
    if kind != "application" or not (subtype == "json" or subtype.endswith("+json")):
        given = headers.get("content-type")
        sent = "there is none" if given is None else f"this is {shown(given)}"
        raise UnsupportedMedia(f"must be application/json, and {sent}", "Content-Type")


def read(body: bytes) -> dict[str, Any]:
    """The object that a body holds.

    Raises InvalidValue for what is not UTF-8, not JSON, no object, or nested too deeply, and for an
    object that says one field twice: of two values the reader, and whatever checked the request
    before, might take different ones. NaN and Infinity are left to the fields, which refuse them by
    name.
    """
    if not body:
        raise InvalidValue("the body is empty, and must be a JSON object")
    try:
        found = parse(body.decode())
    except UnicodeDecodeError as error:
        raise InvalidValue(f"the body is not UTF-8, from byte {error.start} on") from None
    except json.JSONDecodeError as error:
        begins = "begins with a byte order mark" if body.startswith(b"\xef\xbb\xbf") else error.msg
        raise InvalidValue(
            f"the body is not JSON: {begins} (line {error.lineno}, column {error.colno})"
        ) from None
    except RecursionError:
        raise InvalidValue("the body is nested too deeply") from None
    except ValueError:
        # Python bounds the digits that it turns into an integer.
        raise InvalidValue("the body holds a number of too many digits") from None
    if not isinstance(found, dict):
        raise InvalidValue("the body must be a JSON object, and holds something else")
    return found


def parse(text: str) -> Any:
    """What JSON says. Raises InvalidValue for a field that stands twice, else as `json.loads`."""
    return json.loads(text, object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = Counter(name for name, _ in pairs)
        raise InvalidValue(f"{shown(names.most_common(1)[0][0])} stands twice in one object")
    return found


def _media(headers: Headers) -> Message:
    message = Message()
    message["content-type"] = headers.get("content-type", "none/none")
    return message
