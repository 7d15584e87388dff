"""The one-file HTML report, read back with an HTML parser."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import polars
import pytest
from rendering.written_runs import HOSTILE, LONG, WrittenRun, everything, hostile

from modelscope_app.api import BadInput, BarsView, LinesView, TableView
from modelscope_app.rendering.html import report_html, write_report
from modelscope_app.rendering.palette import INKS


class Page(HTMLParser):
    """Elements with their attributes, and the text a reader sees."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def test_the_report_shows_every_view_with_its_facts_and_how_it_was_made(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    page = Page(report_html(run))
    assert page.open == []
    for view in run.views:
        assert view.title in page.text and view.caption in page.text
    for expected in (
        "0.9134 [0.8721, 0.9412]",
        "9f86d081884c7d659a2feaa0c55ad015",
        "/models/SmolLM2-135M-Instruct",
        "[0.5, 1, 2]",
        "mscope run samples.everything",
        "2.13.0",
        "tables/tensors.parquet",
        "artifacts/thresholds.json",
        "Shown are the first 200 of 300 rows; all of them are in tables/tensors.parquet.",
        "1 of 192 values is unknown.",
    ):
        assert expected in page.text
    assert page.count("svg") == 9
    assert page.count("details") == 10


@pytest.mark.parametrize("make", [everything, hostile])
def test_the_report_fetches_nothing_and_runs_nothing(tmp_path: Path, make: object) -> None:
    html = report_html(make(tmp_path / "run"))  # type: ignore[operator]
    page = Page(html)
    policy = [attributes["content"] for tag, attributes in page.elements if attributes.get("http-equiv") == "Content-Security-Policy"]
    assert policy == ["default-src 'none'; img-src data:; style-src 'unsafe-inline'"]
    assert not {"script", "link", "iframe", "object", "embed", "base", "form", "foreignobject"} & {tag for tag, _ in page.elements}
    for tag, attributes in page.elements:
        for name, value in attributes.items():
            assert not name.startswith("on")
            if name in ("src", "srcset", "href", "xlink:href", "action", "data", "poster", "background"):
                assert value is not None and value.startswith(("#", "data:image/png;base64,")), (tag, name)
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html
    assert [address for address in re.findall(r"https?://[^\"'\s]+", html) if not address.startswith("http://www.w3.org/")] == []


def test_hostile_names_are_text_in_the_page(tmp_path: Path) -> None:
    html = report_html(hostile(tmp_path / "run"))
    assert "\x1b" not in html and "\u202e" not in html and LONG[:300] not in html
    text = Page(html).text
    assert HOSTILE[1] in text and HOSTILE[2] in text and HOSTILE[3] in text and r"\x1b[31mred\x1b[0m" in text
    assert "<script>alert" not in html


def test_pictures_take_their_colours_from_the_page_so_that_they_follow_its_theme(tmp_path: Path) -> None:
    html = report_html(everything(tmp_path / "run"))
    body = html[html.index("<body>") :]
    for ink in INKS:
        assert f"--{ink.name}: {ink.light};" in html and f"--{ink.name}: {ink.dark};" in html
        assert ink.light not in body
    assert "fill: var(--ink)" in body and "stroke: var(--series-1)" in body


def test_text_that_looks_like_a_style_stays_text(tmp_path: Path) -> None:
    trick = 'style="fill: #1d2329" <!-- x --> </svg>'
    frame = polars.DataFrame({"name": [trick], "value": [1.0]})
    run = WrittenRun(tmp_path / "run", {"t": frame}, [BarsView(name="b", title=trick, table="t", label="name", value="value")])
    page = Page(report_html(run))
    assert page.open == [] and page.count("svg") == 1
    assert trick in page.text


def test_the_same_run_gives_the_same_bytes(tmp_path: Path) -> None:
    run = everything(tmp_path / "run")
    first, second = (write_report(run, tmp_path / name).read_bytes() for name in ("a.html", "b.html"))
    assert first == second
    first.decode("utf-8")


def test_unknown_values_read_unknown_and_stand_at_the_end_of_a_ranking(tmp_path: Path) -> None:
    frame = polars.DataFrame({"name": ["a", "b", "c"], "value": [float("inf"), 1.0, 2.0]})
    run = WrittenRun(tmp_path / "run", {"t": frame}, [TableView(name="t", title="T", table="t", sort_by="value", descending=True)])
    html = report_html(run)
    assert re.findall(r"<td>([abc])</td>", html) == ["c", "b", "a"]
    assert '<td class="unknown number">unknown</td>' in html


def test_a_broken_view_is_a_sentence_and_the_rest_is_there(tmp_path: Path) -> None:
    views = [LinesView(name="l", title="Broken", table="gone", x="x", y="y"), TableView(name="t", title="Whole", table="t")]
    run = WrittenRun(tmp_path / "run", {"t": polars.DataFrame({"a": ["there"]})}, views, {"answer": 42})
    text = Page(report_html(run)).text
    assert "This view cannot be drawn: run r7f3 has no table 'gone'; it has: t." in text
    assert "there" in text and "answer 42" in text


@pytest.mark.parametrize(
    "content", [None, "{", "[]", '"job"', '{"params": [1], "checkpoints": {"a": 1}, "plugin": 3, "versions": null, "inputs": [7]}']
)
def test_a_run_with_no_or_an_unreadable_job_file_still_has_a_report(tmp_path: Path, content: str | None) -> None:
    run = WrittenRun(tmp_path / "run", {}, [], {"answer": 42})
    if content is not None:
        (run.folder / "job.json").write_text(content)
    assert "answer 42" in Page(report_html(run)).text


def test_an_empty_run_has_a_report(tmp_path: Path) -> None:
    assert "samples.everything" in Page(report_html(WrittenRun(tmp_path / "run", {}))).text


def test_a_report_that_cannot_be_written_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", {})
    (tmp_path / "file").write_text("kept")
    with pytest.raises(BadInput, match="cannot be written"):
        write_report(run, tmp_path / "file" / "report.html")
    (tmp_path / "folder").mkdir()
    with pytest.raises(BadInput, match="cannot be written"):
        write_report(run, tmp_path / "folder")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder", "run"]


def test_a_job_file_that_names_no_fingerprint_says_so(tmp_path: Path) -> None:
    run = WrittenRun(tmp_path / "run", {}, [], {}, job={"checkpoints": [{"path": "/a"}], "seed": 12345})
    text = Page(report_html(run)).text
    assert "/a not given" in text and "seed 12345" in text
    assert json.loads((run.folder / "job.json").read_text())["seed"] == 12345
