"""HTML and SVG by elements. Text is escaped unless it is `Html` already, so that no name can become markup."""

import base64
import binascii
import html
import re
from collections.abc import Iterable

EMPTY = frozenset({"img", "input", "br"})  # elements without an end tag
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
PNG = b"\x89PNG\r\n\x1a\n"


class Html(str):
    """Text that is markup: the result of `element` or `join`, never made of what somebody else wrote."""


def escaped(text: object) -> Html:
    return text if isinstance(text, Html) else Html(plain(text))


def plain(text: object) -> str:
    """Text with its markup escaped, and without control characters, halves of characters and what turns the direction
    of reading."""
    return html.escape(CONTROL.sub("\ufffd", str(text)))


def join(children: Iterable[object], between: str = "") -> Html:
    return Html(between.join(escaped(child) for child in children))


def element(name: str, *children: object, **attributes: object) -> Html:
    """`<name attributes>children</name>`. A trailing underscore of an attribute is dropped, others become hyphens;
    one that is None or False is left out, one that is True stands alone."""
    parts = [name]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        parts.append(key if value is True else f'{key}="{plain(value)}"')
    opened = f"<{' '.join(parts)}>"
    return Html(opened if name in EMPTY else f"{opened}{join(children)}</{name}>")


def picture(png: bytes, text: str, **attributes: object) -> Html:
    """A PNG inside the page. What is no PNG is told by its text alone."""
    if not png.startswith(PNG):
        return element("p", f"{text}: not a PNG")
    data = base64.b64encode(png).decode()
    return element("img", src=f"data:image/png;base64,{data}", alt=text, **attributes)


def decoded(text: object) -> bytes:
    """The bytes of a base64 text; none where it is damaged."""
    try:
        return base64.b64decode(str(text), validate=True)
    except (binascii.Error, ValueError):
        return b""
