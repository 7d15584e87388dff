"""More rows and queries than fit: ends of each query, thin gradients, a filter, near-duplicates. Each against the slow obvious way."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import bm25s  # type: ignore[import-untyped]
import polars as pl
import pytest
import torch
from modelscope_influence import near_duplicates, scanning
from modelscope_influence.analyses import scores
from modelscope_influence.baselines import Words
from modelscope_influence.contractions import Basis, RowGradients
from modelscope_influence.low_rank import LowRank, compressed, is_smaller, multiplied_out, products, squared_norms
from modelscope_influence.objectives import LanguageTask
from modelscope_influence.params import ScoresParams
from modelscope_influence.prefilter import recall
from modelscope_influence.recording import UseOfWeight
from modelscope_influence.score_passes import blocks, query_gradients
from modelscope_influence.top_pass import TopPass, kept_rows
from modelscope_influence.weights import chosen_weights
from plugins.influence.dense_reference import relative_error, token_rows, within
from plugins.influence.test_invariances import Files, labelled, mlp
from plugins.probes.score.in_process import WORDS, Ran, run_in_process, saved_llama, written_rows
from pydantic import ValidationError

from modelscope_app.api import BadInput, Example
from modelscope_app.testing import assert_fold_merges

COUNT = 40


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("MSCOPE_CACHE_DIR", str(tmp_path / "cache"))
    return


def texts(count: int, seed: int, length: int = 8) -> list[dict[str, Any]]:
    generator = random.Random(seed)
    words = [word for word in WORDS if word.isalpha()]
    return [{"text": " ".join(generator.choices(words, k=generator.randint(2, length)))} for _ in range(count)]


@pytest.fixture(params=["mlp", "llama"])
def files(tmp_path: Path, request: pytest.FixtureRequest) -> Files:
    """Forty rows, two of them the same, and three queries."""
    if request.param == "mlp":
        rows, asked, checkpoint = labelled(COUNT), labelled(3, seed=2), mlp(tmp_path / "mlp")
    else:
        rows, asked, checkpoint = texts(COUNT, 1), texts(3, 2), saved_llama(tmp_path / "llama", width=48)
    rows[17] = rows[30]
    return Files(checkpoint, written_rows(tmp_path / "train.jsonl", rows), written_rows(tmp_path / "queries.jsonl", asked))


@pytest.fixture
def worded(tmp_path: Path) -> Files:
    train, queries = written_rows(tmp_path / "train.jsonl", texts(COUNT, 1)), written_rows(tmp_path / "queries.jsonl", texts(3, 2))
    return Files(saved_llama(tmp_path / "llama", width=48), train, queries)


def scored(files: Files, folder: Path, **params: Any) -> Ran:
    given = {"train": files.train, "queries": files.queries, "modules": "all", **params}
    return run_in_process(scores.run, ScoresParams(**given), folder, [files.checkpoint])


def ends(table: pl.DataFrame, count: int) -> pl.DataFrame:
    """The first and last rows of each query."""
    return pl.concat([pl.concat([rows.head(count), rows.tail(count)]) for _, rows in table.group_by("query", maintain_order=True)])


def assert_same(found: pl.DataFrame, expected: pl.DataFrame, limit: float = 1e-5) -> None:
    assert found.columns == expected.columns
    for table in (found, expected):  # falling, but for rounding: rows 17 and 30 are the same
        falls = table.group_by("query").agg((pl.col("score").diff() / pl.col("score").abs().max()).max().alias("rise"))
        assert falls["rise"].max() < 1e-6
    found, expected = found.sort("query", "example"), expected.sort("query", "example")
    assert found.select("query", "example").equals(expected.select("query", "example"))
    for name in ("score", "delta_measure", "relatif", "gradient_cosine", "loss"):
        assert relative_error(found[name].to_torch(), expected[name].to_torch()) < limit, name


@pytest.mark.parametrize("params", [{}, {"rank": 1, "rerank": COUNT}], ids=["exact", "low rank"])
def test_the_best_by_relatif_are_chosen_however_they_are_scanned(
    tmp_path: Path, files: Files, params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    everything = scored(files, tmp_path / "everything").table("pairwise").sort("query", "relatif", descending=[False, True])
    whole = scored(files, tmp_path / "whole", top_k=4, rank_by="relatif").table("pairwise")
    monkeypatch.setattr(scanning, "PAIR_BYTES", 0)
    streamed = scored(files, tmp_path / "streamed", top_k=4, rank_by="relatif", **params).table("pairwise")
    listed = scored(files, tmp_path / "listed", rank_by="relatif").table("pairwise")
    expected = ends(everything, 4)
    for found in (whole, streamed, ends(listed, 4)):
        assert found.height == 24
        assert relative_error(found["relatif"].to_torch(), expected["relatif"].to_torch()) < 1e-5  # in this order, falling
        both = found.join(everything, on=["query", "example"])
        assert relative_error(both["score"].to_torch(), both["score_right"].to_torch()) < 1e-5


def test_a_query_that_is_no_conversation_is_warned_of_where_rows_are(tmp_path: Path, worded: Files) -> None:
    turns = [{"role": "user", "content": "are you"}, {"role": "assistant", "content": "good"}]
    train = written_rows(tmp_path / "talk.jsonl", [{"messages": turns}] * 4)
    queries = written_rows(tmp_path / "bare.jsonl", [{"messages": turns}, {"prompt": "are you", "completion": "good"}])
    ran = scored(worded._replace(train=train, queries=queries), tmp_path / "run")
    assert [said for said in ran.warnings if said.startswith("query 1 is no conversation, as the training rows are")]
    assert not scored(worded, tmp_path / "words").warnings


@pytest.mark.parametrize("top_k", [1, 7, 25])
def test_ends_that_are_streamed_are_those_of_all_pairs(tmp_path: Path, files: Files, top_k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows 17 and 30 are the same: of equal scores the first row is the higher one. With 25 of each end, all 40 rows are there."""
    whole = scored(files, tmp_path / "whole", top_k=top_k, per_module=True)
    everything = scored(files, tmp_path / "everything", per_module=True)
    monkeypatch.setattr(scanning, "PAIR_BYTES", 0)
    streamed = scored(files, tmp_path / "streamed", top_k=top_k, per_module=True)
    assert_same(whole.table("pairwise"), streamed.table("pairwise"))
    if 2 * top_k <= COUNT:
        assert_same(streamed.table("pairwise"), ends(everything.table("pairwise"), top_k))
    else:
        assert_same(streamed.table("pairwise"), everything.table("pairwise"))
    for ran in (whole, streamed):
        by_module = ran.table("modules").group_by("query", "example", maintain_order=True).agg(pl.col("score").sum())
        assert relative_error(by_module["score"].to_torch(), ran.table("pairwise")["score"].to_torch()) < 1e-6


def test_flagged_rows_among_the_best_are_told_only_where_all_the_best_are_there(
    tmp_path: Path, worded: Files, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With --top-k 15 the 20 highest are not kept, and rows of the other end are no substitute."""
    rows = [{**row, "poisoned": at % 3 == 0} for at, row in enumerate(texts(60, 1))]
    files = worded._replace(train=written_rows(tmp_path / "flagged.jsonl", rows))
    expected = scored(files, tmp_path / "whole").facts
    monkeypatch.setattr(scanning, "PAIR_BYTES", 0)
    few, enough = (scored(files, tmp_path / f"run-{top_k}", top_k=top_k).facts for top_k in (15, 20))
    assert few["precision_at_20"] is None and "auc" not in few
    assert enough["precision_at_20"] == pytest.approx(expected["precision_at_20"])
    assert enough["auc_bm25"] == few["auc_bm25"] == expected["auc_bm25"]
    by_relatif = scored(files, tmp_path / "relatif", top_k=20, rank_by="relatif").facts
    assert by_relatif["precision_at_20_relatif"] == pytest.approx(expected["precision_at_20_relatif"])
    assert "precision_at_20" not in by_relatif


def test_a_filter_tells_no_recall_of_rows_that_were_not_chosen_by_score(tmp_path: Path, worded: Files) -> None:
    facts = scored(worded, tmp_path / "run", prefilter=6, top_k=3, rank_by="relatif").facts
    assert facts["prefilter_recall"] is None and facts["prefilter_recall_lowest"] is None


def test_rows_set_aside_are_named_whatever_the_curvature(tmp_path: Path) -> None:
    checkpoint = mlp(tmp_path / "mlp")
    rows = [*labelled(5), {"features": [1e38] * 5, "label": 0}]
    files = Files(checkpoint, written_rows(tmp_path / "t.jsonl", rows), written_rows(tmp_path / "q.jsonl", labelled(1)))
    ran = scored(files, tmp_path / "run", curvature="identity", measure="loss")
    assert ran.facts["rows_set_aside"] == len([said for said in ran.warnings if "set aside" in said])


def test_ends_alone_take_no_second_pass(tmp_path: Path, files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scanning, "PAIR_BYTES", 0)
    ran = scored(files, tmp_path / "run", top_k=3, baselines=False)
    assert ran.table("pairwise").height == 18
    assert sorted(path.name for path in (ran.run.folder / "stages").glob("*-0")) == ["ends-0"]


def test_ends_merge_whatever_the_shards(tmp_path: Path) -> None:
    """Scores of -1 and 1 alone, so that most are ties, and a row whose loss is not finite."""
    checkpoint = saved_llama(tmp_path / "llama")
    rows = [{"input_ids": row} for row in [*token_rows((3, 3, 5)), *token_rows((3, 3, 5)), *token_rows((4, 6))]]
    train = written_rows(tmp_path / "train.jsonl", rows)

    def check(context: Any) -> None:
        task = LanguageTask(context, context.model(), train, 12)
        weights = chosen_weights(context.model(), "mlp")
        curvatures = {weight.name: scanning_identity() for weight in weights}
        divided_by = blocks(curvatures, 0.1, context.model())
        asked = query_gradients(task, weights, "loss", [1, 7], divided_by)
        assert_fold_merges(TopPass(task, weights, asked, divided_by, 3), task.source())

    within(tmp_path / "run", checkpoint, check)


def scanning_identity() -> Any:
    from modelscope_influence.ekfac import Curvature

    return Curvature(None, None, 1, 1)


def test_ties_keep_their_order_and_rows_set_aside_are_none() -> None:
    """Against sorting everything: ends of a batch at a time, in every order of four batches."""
    scores_of = torch.tensor([[1.0, 0.0, 1.0, torch.nan, 0.0, 1.0, -1.0, 0.0], [2.0, 2.0, 2.0, torch.nan, 2.0, 2.0, 2.0, 2.0]])
    expected = [torch.tensor([0, 2, 7, 6]), torch.tensor([0, 1, 6, 7])]
    for order in itertools.permutations(range(4)):
        state: dict[str, torch.Tensor] = {}
        pass_ = TopPass.__new__(TopPass)
        pass_._count, pass_._by_relatif = 2, False
        for end in ("high", "low"):
            state[end], state[f"{end}_rows"] = torch.full((2, 2), torch.nan).double(), torch.full((2, 2), -1)
        state["self"] = torch.zeros(8, dtype=torch.float64)
        for batch in order:
            rows = torch.tensor([2 * batch, 2 * batch + 1])
            pass_._batch = scores_of[:, rows].double()
            pass_._rows_done(state, rows, pass_._batch.isfinite().all(0))
        places, values = kept_rows(state)
        assert [own.tolist() for own in places] == [[0, 2, 7, 6], [0, 1, 6, 7]] == [own.tolist() for own in expected]
        assert torch.equal(values[0], scores_of[0, places[0]].double())


# Low rank


def uses(batch: int, positions: int, inputs: int, outputs: int, seed: int = 0) -> list[UseOfWeight]:
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(1 if positions == 1 else 2):
        made.append(
            UseOfWeight(
                torch.randn(batch, positions, inputs, generator=generator, dtype=torch.float64),
                torch.randn(batch, positions, outputs, generator=generator, dtype=torch.float64),
            )
        )
    return made


@pytest.mark.parametrize(("positions", "batch"), [(1, 5), (2, 40), (30, 3)], ids=["one position", "rebuilt", "many positions"])
@pytest.mark.parametrize("in_basis", [False, True])
def test_products_with_thin_directions_are_those_with_whole_ones(positions: int, batch: int, in_basis: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    thin = LowRank(
        torch.randn(4, 20, 3, generator=generator, dtype=torch.float64), torch.randn(4, 3, 31, generator=generator, dtype=torch.float64)
    )
    basis = None
    if in_basis:
        basis = Basis(*(torch.linalg.qr(torch.randn(n, n, generator=generator, dtype=torch.float64)).Q for n in (31, 20)))
    rows = RowGradients(uses(batch, positions, 31, 20), basis)
    expected = torch.einsum("qoi,boi->qb", multiplied_out(thin), rows.dense)
    assert relative_error(products(rows, thin), expected) < 1e-12
    assert relative_error(squared_norms(thin), multiplied_out(thin).square().sum((1, 2))) < 1e-12


@pytest.mark.parametrize("rank", [1, 4, 12])
def test_compressing_finds_the_nearest_directions_of_the_rank(rank: int) -> None:
    """Eckart and Young: what is left out is the tail of the singular values, to 1 % (the decomposition is a randomised one)."""
    generator = torch.Generator().manual_seed(1)
    falling = torch.exp(-torch.arange(30.0, dtype=torch.float64) / 4)
    whole = torch.stack(
        [
            torch.linalg.qr(torch.randn(40, 30, generator=generator, dtype=torch.float64)).Q
            @ falling.diag()
            @ torch.linalg.qr(torch.randn(50, 30, generator=generator, dtype=torch.float64)).Q.T
            for _ in range(3)
        ]
    )
    thin = compressed(whole, rank)
    assert isinstance(thin, LowRank) and thin.left.shape == (3, 40, rank) and thin.right.shape == (3, rank, 50)
    left_out = (whole - multiplied_out(thin)).square().sum((1, 2))
    assert torch.allclose(left_out, falling[rank:].square().sum().expand(3), rtol=0.01)
    assert torch.allclose(squared_norms(thin), falling[:rank].square().sum().expand(3), rtol=0.01)
    assert not is_smaller(40, 50, 23) and compressed(whole, 23) is whole


def test_a_scan_of_low_rank_ends_with_exact_scores(tmp_path: Path, files: Files) -> None:
    """With every row looked at again, the ends are those of all pairs, whatever the rank."""
    expected = ends(scored(files, tmp_path / "whole").table("pairwise"), 5)
    ran = scored(files, tmp_path / "thin", top_k=5, rank=1, rerank=COUNT)
    found = ran.table("pairwise")
    assert found["is_exact"].all()
    assert_same(found.drop("is_exact"), expected.select(found.drop("is_exact").columns))
    assert ran.facts["rank"] == 1 and ran.facts["rank_candidates"] == COUNT
    assert 0 < ran.facts["rank_kept"] < 1 and ran.facts["rank_correlation"] < 1 and ran.facts["rank_deepest"] >= 5


def test_a_rank_that_leaves_everything_is_the_scan_itself(tmp_path: Path, files: Files) -> None:
    whole, thin = scored(files, tmp_path / "whole"), scored(files, tmp_path / "thin", rank=48, rerank=4)
    assert thin.facts["rank_kept"] == pytest.approx(1, abs=1e-5) and thin.facts["rank_correlation"] == pytest.approx(1, abs=1e-5)
    for name in ("example", "score", "relatif"):
        assert relative_error(thin.table("pairwise")[name].to_torch().double(), whole.table("pairwise")[name].to_torch().double()) < 1e-4


def test_all_pairs_at_low_rank_say_which_are_exact(tmp_path: Path, files: Files) -> None:
    whole = scored(files, tmp_path / "whole", per_module=True).table("pairwise").sort("query", "example")
    ran = scored(files, tmp_path / "thin", rank=1, rerank=4, per_module=True)
    found = ran.table("pairwise").sort("query", "example")
    assert found.group_by("query").agg(pl.col("is_exact").sum())["is_exact"].to_list() == [8, 8, 8]
    exact = found["is_exact"].to_torch()
    assert relative_error(found["score"].to_torch()[exact], whole["score"].to_torch()[exact]) < 1e-6
    assert relative_error(found["score"].to_torch()[~exact], whole["score"].to_torch()[~exact]) > 1e-4
    assert found.filter("is_exact")["gradient_cosine"].null_count() == 0
    assert found.filter(~pl.col("is_exact"))["gradient_cosine"].is_null().all()
    by_module = ran.table("modules").group_by("query", "example").agg(pl.col("score").sum()).join(found, on=["query", "example"])
    known = by_module.filter("is_exact")
    assert relative_error(known["score"].to_torch(), known["score_right"].to_torch()) < 1e-6


def test_queries_that_do_not_fit_are_scanned_at_rank_32(tmp_path: Path, worded: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = scored(worded, tmp_path / "whole", top_k=5)
    monkeypatch.setattr(scanning, "QUERY_BYTES", 300_000)
    found = scored(worded, tmp_path / "thin", top_k=5)
    assert "rank" not in expected.facts and found.facts["rank"] == 32
    assert_same(found.table("pairwise").drop("is_exact"), expected.table("pairwise"))
    in_parts = scored(worded, tmp_path / "parts")
    assert "rank" not in in_parts.facts and in_parts.table("pairwise").height == 3 * COUNT


# The filter


def test_a_filter_scores_the_rows_with_most_words_in_common(tmp_path: Path, worded: Files) -> None:
    whole = scored(worded, tmp_path / "whole").table("pairwise")
    ran = scored(worded, tmp_path / "filtered", prefilter=6, prefilter_sample=0)
    best = whole.sort("bm25", descending=True, maintain_order=True).group_by("query").head(6)
    allowed = set(best["example"])
    found = ran.table("pairwise")
    assert found.height == 3 * ran.facts["rows_scored"] and ran.facts["rows_scored"] + ran.facts["rows_filtered_out"] == COUNT
    for _, rows in whole.group_by("query"):  # equal ones at the border may be others
        border = rows["bm25"].sort(descending=True)[5]
        assert set(rows.filter((pl.col("bm25") > border) & (pl.col("bm25") > 0))["example"]) <= set(found["example"])
    assert len(set(found["example"]) - allowed) <= 6
    same = whole.join(found, on=["query", "example"], how="semi")
    assert_same(found.drop("group"), same.drop("group"))
    assert any("filtered:" in said and f"of {COUNT} rows" in said for said in ran.warnings)


@pytest.mark.parametrize("params", [{}, {"top_k": 4}, {"top_k": 4, "rank": 2}, {"rank": 2}], ids=str)
def test_what_a_filter_missed_is_told_by_a_sample(tmp_path: Path, worded: Files, params: dict[str, Any]) -> None:
    """With all others in the sample, the estimate is the share itself."""
    whole = scored(worded, tmp_path / "whole").table("pairwise")
    ran = scored(worded, tmp_path / "filtered", prefilter=6, prefilter_sample=COUNT, **params)
    taken = set(ran.table("pairwise")["example"]) if not params.get("top_k") else None
    rows = scored(worded, tmp_path / "rows", prefilter=6, prefilter_sample=0).table("pairwise")
    count = params.get("top_k", 20)
    for name, descending in {"prefilter_recall": True, "prefilter_recall_lowest": False}.items():
        shares = []
        for query in range(3):
            own = rows.filter(pl.col("query") == query).sort("score", descending=descending).head(count)
            assert taken is None or set(own["example"]) <= taken
            border = own["score"][-1]
            as_high = whole.filter((pl.col("query") == query) & (pl.col("score") >= border if descending else pl.col("score") <= border))
            shares.append(own.height / (own.height + as_high.filter(~pl.col("example").is_in(rows["example"].to_list())).height))
        said = ran.facts[name]
        assert said["value"] == pytest.approx(sum(shares) / 3)
        assert said["ci_low"] <= said["value"] <= said["ci_high"]


def test_recall_from_a_sample_covers_the_share_that_was_missed() -> None:
    """In at least 95 of 100 draws of 60 out of 1,000, with 40 as high as the last of 20 found: 20 / 60."""
    others = torch.cat([torch.full((40,), 5.0), torch.zeros(960)])
    covered, values = 0, []
    for seed in range(100):
        drawn = others[torch.randperm(1000, generator=torch.Generator().manual_seed(seed))[:60]]
        found = recall([torch.arange(20.0) + 5], drawn[None], 1000)
        assert found is not None
        covered += found.low <= 20 / 60 <= found.high
        values.append(20 / found.value - 20)
    assert covered >= 93
    assert sum(values) / 100 == pytest.approx(40, rel=0.2)


def test_a_filter_takes_words(tmp_path: Path) -> None:
    files = Files(mlp(tmp_path / "mlp"), written_rows(tmp_path / "t.jsonl", labelled(5)), written_rows(tmp_path / "q.jsonl", labelled(1)))
    with pytest.raises(BadInput, match="--prefilter looks for words in common, and rows of an mlp are numbers"):
        scored(files, tmp_path / "run", prefilter=2)


def test_words_are_those_of_a_whole_index() -> None:
    generator = random.Random(0)
    train = [[int(generator.paretovariate(0.7)) % 300 for _ in range(generator.randint(1, 40))] for _ in range(200)]
    queries = [train[5], [1, 1, 2, 999], [998]]

    def examples(rows: Sequence[Sequence[int]]) -> list[Example]:
        return [Example(at, tuple(row), 0, {}) for at, row in enumerate(rows)]

    whole = bm25s.BM25()
    whole.index([[str(token) for token in row] for row in train], show_progress=False)
    words = Words(examples(train), examples(queries))
    for at, query in enumerate(queries):
        assert words.scores(at).tolist() == whole.get_scores([str(token) for token in query]).tolist()
    assert words.scores(2).tolist() == [0.0] * 200


# Near-duplicates


def test_near_duplicates_are_those_of_comparing_every_pair() -> None:
    """Rows that differ in one token of forty are one group, through each other too; short and unlike rows are alone."""
    generator = random.Random(4)
    texts = [tuple(generator.randrange(1000) for _ in range(40)) for _ in range(30)]
    rows = dict(enumerate(texts))
    for at in range(10):
        changed = list(texts[at])
        changed[generator.randrange(3, 37)] = 5000 + at
        rows[100 + at] = tuple(changed)
    rows |= {200: texts[3], 201: (7,), 202: (7,), 203: (7, 8), 204: tuple(texts[0][:20])}
    found = near_duplicates.groups(rows)
    stretches = {row: near_duplicates._stretches(tokens) for row, tokens in rows.items()}
    expected = {row: row for row in rows}
    for one, other in itertools.combinations(sorted(rows), 2):
        if near_duplicates.likeness(stretches[one], stretches[other]) >= near_duplicates.LIKENESS:
            expected[other] = min(expected[other], expected[one])
    assert found == expected
    assert found[200] == found[103] == 3 and found[202] == 201 and found[203] == 203 and found[204] == 204


def test_rows_that_are_nearly_the_same_are_shown_once(tmp_path: Path, worded: Files) -> None:
    rows = [{"text": "are you doing harm good a sort list in year code please yes"} for _ in range(3)] + texts(12, 5)
    train = written_rows(tmp_path / "again.jsonl", rows)
    ran = scored(worded._replace(train=train), tmp_path / "run")
    pairwise, shown = ran.table("pairwise"), ran.table("shown")
    assert pairwise.filter(pl.col("example") < 3)["group"].to_list() == [0] * 9
    assert pairwise.filter(pl.col("example") >= 3)["group"].n_unique() == pairwise.filter(pl.col("example") >= 3)["example"].n_unique()
    assert shown.filter(pl.col("group") == 0)["duplicates"].to_list() == [2, 2, 2]
    apart = scored(worded._replace(train=train), tmp_path / "apart", group_duplicates=False)
    assert "group" not in apart.table("pairwise").columns and apart.table("shown").height == pairwise.height


# A query that is typed


@pytest.mark.parametrize("template", ["auto", "chat", "none"])
@pytest.mark.parametrize("prompt", ["are you doing", ""])
def test_a_typed_query_is_scored_as_one_of_a_file(tmp_path: Path, worded: Files, template: str, prompt: str) -> None:
    bare = {"prompt": prompt, "completion": "harm good"}
    turns = {"messages": [{"role": "user", "content": prompt}, {"role": "assistant", "content": "harm good"}]}
    is_chat = template == "chat" or (template == "auto" and prompt)
    from_file = scored(worded, tmp_path / "file", queries=written_rows(tmp_path / "one.jsonl", [turns if is_chat else bare]))
    typed = scored(worded, tmp_path / "typed", queries="", template=template, **bare)
    assert from_file.table("pairwise").equals(typed.table("pairwise"))
    assert from_file.table("queries").equals(typed.table("queries")) and typed.table("queries").height == 1


@pytest.mark.parametrize("given", [{}, {"queries": "q.jsonl", "completion": "x"}, {"queries": "q.jsonl", "prompt": "x"}, {"prompt": "x"}])
def test_queries_come_from_one_place(given: dict[str, str]) -> None:
    with pytest.raises(ValidationError, match=r"give either --queries FILE|is what --completion TEXT follows"):
        ScoresParams(train="t.jsonl", **given)


def test_what_is_wrong_with_a_typed_query_is_said_of_it(tmp_path: Path, worded: Files) -> None:
    with pytest.raises(BadInput, match=r"^--prompt and --completion: has \d+ tokens, and the model takes 128; shorten the row"):
        scored(worded, tmp_path / "run", queries="", completion="harm " * 200)
    files = Files(mlp(tmp_path / "mlp"), written_rows(tmp_path / "t.jsonl", labelled(5)), "")
    with pytest.raises(BadInput, match="--completion is text, and this checkpoint is an mlp"):
        scored(files, tmp_path / "mlp-run", completion="x")
