"""What the panels of the influence plugin read of a run and of its data files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import polars
import pytest
from modelscope_influence.panels.rankings import MOST_SHOWN, Wanted, read_ranking, texts_of
from modelscope_influence.panels.row_texts import RowText, RowTexts
from tui.test_tui_influence_panels import HOSTILE, Made, files, pairwise, scores_run, whole

from modelscope_app.runs.folder import RunFolder

__all__ = ["files", "scores_run", "whole"]


def test_columns_that_are_not_there_are_done_without(scores_run: Made) -> None:
    run = scores_run({"pairwise": pairwise().select("query", "example", "score")}, {"baselines": False})
    ranking = read_ranking(run, Wanted(by="bm25"), texts_of(run))
    assert ranking.rankings == ["score"] and ranking.wanted.by == "score"
    assert ranking.rows[0].effect == "" and ranking.rows[0].is_flagged is None and ranking.rows[0].duplicates is None


def test_of_a_large_table_only_what_is_shown_is_read(scores_run: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    many = 50_000
    run = scores_run(
        {"pairwise": polars.DataFrame({"query": [0] * many, "example": range(many), "score": [float(at) for at in range(many)]})}
    )
    monkeypatch.setattr(RunFolder, "table", None)
    ranking = read_ranking(run, Wanted(), texts_of(run))
    assert len(ranking.rows) == MOST_SHOWN and ranking.rows[0].example == many - 1 and ranking.of_side == many - 1


def test_ranks_count_all_rows_of_the_query_from_the_side_in_question(whole: RunFolder) -> None:
    supporters = read_ranking(whole, Wanted(), texts_of(whole)).rows[0]
    opponents = read_ranking(whole, Wanted(supporters=False), texts_of(whole)).rows[0]
    assert supporters.ranks == {"score": 1, "relatif": 1, "gradient_cosine": 8, "bm25": 3}
    assert opponents.ranks == {"score": 1, "relatif": 1, "gradient_cosine": 8, "bm25": 8}


def test_texts_come_from_the_run_where_the_file_has_gone_or_changed(scores_run: Made, files: Mapping[str, str]) -> None:
    kept = pairwise().filter(polars.col("example") >= 6).with_columns(text=polars.lit("kept"))
    queries = polars.DataFrame({"query": [0, 1], "loss": [1.0, 1.0], "text": ["kept query 0", "kept query 1"]})
    run = scores_run({"pairwise": pairwise(), "shown": kept, "queries": queries})
    words = [row.text.whole if row.text else None for row in read_ranking(run, Wanted(), texts_of(run)).rows]
    assert words == [f"row {row} asks answer {row}" for row in (7, 6, 5, 4)], "the file is as it was"
    Path(files["train"]).unlink()
    Path(files["queries"]).unlink()
    ranking = read_ranking(run, Wanted(1), texts_of(run))
    assert [row.text.whole if row.text else None for row in ranking.rows] == ["kept", "kept", None, None, None]
    assert ranking.query_text == "kept query 1"


@pytest.mark.parametrize("suffix", ["jsonl", "parquet", "csv", "txt"])
def test_rows_of_every_kind_of_file_are_found_by_their_number(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"rows.{suffix}"
    frame = polars.DataFrame({"text": ["zero", "one", "two"]})
    if suffix == "jsonl":
        path.write_text("\ufeff" + "\n \n".join(json.dumps(row) for row in frame.iter_rows(named=True)))
    elif suffix == "txt":
        path.write_text("zero\n\none\n   \ntwo\n")
    else:
        (frame.write_parquet if suffix == "parquet" else frame.write_csv)(path)
    assert RowTexts(str(path)).texts([2, 0, 9]) == {2: RowText("", "two"), 0: RowText("", "zero")}


@pytest.mark.parametrize(("name", "content"), [("a.jsonl", b"{"), ("a.jsonl", b"\xff\xfe"), ("a.parquet", b"PAR1"), ("a.arrow", b"")])
def test_a_file_that_cannot_be_read_has_no_texts(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert RowTexts(str(tmp_path / name)).texts([0]) == {}
    assert RowTexts("").texts([0]) == {}


@pytest.mark.parametrize("damaged", [polars.DataFrame({"query": ["a"], "example": [[1]]}), None])
def test_words_that_cannot_be_read_take_no_ranking_away(
    whole: RunFolder, files: Mapping[str, str], damaged: polars.DataFrame | None
) -> None:
    for path in files.values():
        Path(path).unlink()
    for name in ("shown", "queries"):
        if damaged is None:
            (whole.folder / "tables" / f"{name}.parquet").write_bytes(b"PAR1 not really")
        else:
            whole.write_table(name, damaged)
    ranking = read_ranking(whole, Wanted(), texts_of(whole))
    assert ranking.query_text == "" and [row.text for row in ranking.rows] == [None] * 4


@pytest.mark.parametrize("text", [RowText("", HOSTILE), RowText(HOSTILE, "x"), RowText("x", HOSTILE), RowText(HOSTILE, HOSTILE)])
def test_a_line_is_as_long_as_there_is_room_and_harmless(text: RowText) -> None:
    for room in (20, 60, 400):
        line = text.line(room)
        assert line.isprintable() and "\n" not in line
