"""The report as one HTML file: pictures inside, no scripts, nothing fetched, all text escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from audit.evidence.report import printable
from audit.evidence.words import ASSETS

REPORT = "report.html"
STYLE = "report.css"
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def html(document: Mapping[str, Any], pictures: Mapping[str, bytes]) -> bytes:
    """The report of a document (`audit.evidence.document`) with its pictures by name, UTF-8."""
    method, words = document["method"], document["words"]
    body = [
        "<main>",
        f"<h1>{text(document['heading'])}</h1>",
        f'<p class="quiet">{text(document["subtitle"])}</p>',
        *weak(document["weak"]),
        f'<div class="pair">{side(document["pair"]["left"], pictures)}{side(document["pair"]["right"], pictures)}</div>',
        f"<h2>{text(document['claims_title'])}</h2>",
        f'<div class="claims">{"".join(map(claim, document["claims"]))}</div>',
        f"<h2>{text(document['plain_title'])}</h2>",
        *(answer(number, each) for number, each in enumerate(document["answers"], start=1)),
        f"<h2>{text(words['title'])}</h2>",
        items("ul", words["items"]),
        f"<h2>{text(method['title'])}</h2>",
        f"<p>{text(method['intro'])}</p>",
        *(f"<h3>{text(part['title'])}</h3>{items('ol', part['items'])}" for part in method["lists"]),
        f"<h2>{text(document['figures_title'])}</h2>",
        f'<div class="figures">{"".join(side(each, pictures) for each in document["figures"])}</div>',
        f"<h2>{text(document['record_title'])}</h2>",
        *map(section, document["record"]),
        "</main>",
    ]
    style = (ASSETS / STYLE).read_text(encoding="utf-8")
    page = (
        f'<!doctype html>\n<html lang="{text(document["language"])}">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(document['title'])}</title>\n<style>\n{style}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )
    return page.encode("utf-8", "replace")


def text(content: str) -> str:
    """Plain text as HTML; what is invisible or turns the direction of writing stands as its number."""
    return escape(printable(content, lambda character: True))


def side(each: Mapping[str, Any], pictures: Mapping[str, bytes]) -> str:
    """A figure, or what is said in its place."""
    if each["file"] is None:
        return f'<p class="absent quiet">{text(each["caption"])}</p>'
    data = base64.b64encode(pictures[each["file"]]).decode()
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{text(each["alt"])}">'
        f"<figcaption>{text(each['caption'])}</figcaption></figure>"
    )


def weak(sentences: Sequence[str]) -> list[str]:
    """What is said first of a verdict that barely holds, if it does."""
    if not sentences:
        return []
    return [f'<p class="weak"><strong>{text(sentences[0])}</strong> {text(" ".join(sentences[1:]))}</p>']


def claim(each: Mapping[str, str]) -> str:
    return (
        f'<div class="claim {text(each["mark"])}"><strong>{text(each["name"])}: {text(each["state"])}</strong>'
        f'<span class="quiet">{text(each["meaning"])}</span></div>'
    )


def answer(number: int, each: Mapping[str, Any]) -> str:
    sentences = " ".join(each["sentences"])
    return f'<div class="answer"><h3>{number}. {text(each["question"])}</h3><p>{text(sentences)}</p></div>'


def items(tag: str, lines: Sequence[str]) -> str:
    return f"<{tag}>{''.join(f'<li>{text(line)}</li>' for line in lines)}</{tag}>"


def section(each: Mapping[str, Any]) -> str:
    """A part of the record: its paragraphs and its table."""
    parts = [f"<h3>{text(each['title'])}</h3>", *(f"<p>{text(line)}</p>" for line in each.get("text", ()))]
    if rows := each.get("rows"):
        head = each.get("head")
        first = "th" if head is None else "td"
        scope = ' scope="row"' if head is None else ""
        named = "".join(f'<th scope="col">{text(name)}</th>' for name in head or ())
        lines = [
            f"<tr><{first}{scope}>{text(row[0])}</{first}>"
            + "".join(f"<td>{code(cell) if each.get('code') else text(cell)}</td>" for cell in row[1:])
            + "</tr>"
            for row in rows
        ]
        parts.append(
            f'<div class="wide"><table>{f"<thead><tr>{named}</tr></thead>" if head else ""}'
            f"<tbody>{''.join(lines)}</tbody></table></div>"
        )
    return "".join(parts)


def code(content: str) -> str:
    return f"<code>{text(content)}</code>"
