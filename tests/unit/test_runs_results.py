"""Runs read by DuckDB: the same rows as pandas gives, whatever is asked."""

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from audit.errors import InputError
from audit.files import write_parquet
from audit.records import caption_id
from audit.runs import selections
from audit.runs.folder import RunFolder
from audit.runs.results import Filter, Results
from audit.settings import settings

HOSTILE = "=HYPERLINK('x'); DROP TABLE captions; -- %_"


def as_runs_do(rows):
    """NaN stays NaN: pandas alone would write it as null."""
    return pa.table({name: pa.array(rows[name].to_numpy(), from_pandas=False) for name in rows.columns})


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    captions = [f"caption {i} {'Red' if i % 3 else 'blue'}" for i in range(199)] + [HOSTILE]
    table = pd.DataFrame(
        {
            "caption_id": [caption_id(text) for text in captions],
            "caption": captions,
            "occurrences": rng.integers(1, 9, 200),
            "tokens": rng.integers(3, 20, 200),
            "dcs": rng.normal(220, 9, 200).astype("float32").round(),
            "magnitude": rng.random(200).astype("float32"),
        }
    )
    table.loc[5, "dcs"] = np.nan  # written as NaN, as runs do, and not as null
    run = RunFolder.create(
        tmp_path / "it's a run",
        {"model": "m", "model_sha256": "f" * 64, "seeds": [0, 1], "guidance": 7.5, "noise": "cpu"},
    )
    write_parquet(pa.Table.from_pandas(table[["caption_id", "caption"]]), run.path / "input.parquet")
    for first in (0, 120):
        rows = table.iloc[first : first + 120]
        seeds = pd.concat([rows.assign(seed=seed, dcs=rows["dcs"] + seed) for seed in (0, 1)])
        run.append({"scores": pa.Table.from_pandas(seeds), "captions": as_runs_do(rows)}, first)
    return run, table


def decide(run, table):
    decided = table.head(10)[["caption_id", "caption"]].assign(verdict=["MV", "N"] * 5, sse=1.0)
    run.append({"verdicts": pa.Table.from_pandas(decided, preserve_index=False)})


@pytest.mark.parametrize("sort", ["dcs", "magnitude", "caption", "occurrences"])
@pytest.mark.parametrize("descending", [True, False])
def test_pages_are_in_order_and_hold_every_row_once(run, sort, descending):
    folder, table = run
    results = Results(folder)
    pages = [
        results.page(sort=sort, descending=descending, first=first, rows=30) for first in range(0, 210, 30)
    ]
    found = pd.concat(pages)
    assert len(found) == 200 and found["caption_id"].is_unique
    ordered = table.sort_values([sort, "caption_id"], ascending=[not descending, True], na_position="last")
    assert found["caption_id"].tolist() == ordered["caption_id"].tolist()


def test_filters_and_counts(run):
    folder, table = run
    results = Results(folder)
    assert results.count() == 200
    assert results.count(Filter(search="RED")) == table["caption"].str.contains("Red").sum()
    assert results.count(Filter(search="%_")) == 1
    assert results.count(Filter(search="'; DROP")) == 0
    assert results.count(Filter(score="dcs", least=225.0)) == (table["dcs"] >= 225).sum()
    assert results.count(Filter(score="dcs", least=215.0, most=225.0)) == table["dcs"].between(215, 225).sum()
    assert results.page(Filter(search="drop table"))["caption"].tolist() == [HOSTILE]


def test_verdicts_stand_beside_the_scores(run):
    folder, table = run
    assert Results(folder).verdicts() == {} and Results(folder).count(Filter(verdict="MV")) == 0
    decide(folder, table)
    results = Results(folder)
    assert results.verdicts() == {"MV": 5, "N": 5}
    assert results.count(Filter(verdict="MV")) == 5
    assert results.count(Filter(verdict="none")) == 190
    assert set(results.page(Filter(verdict="MV"))["sse"]) == {1.0}
    with pytest.raises(ValueError):
        results.count(Filter(verdict="x"))


def test_histogram_counts_every_number(run):
    folder, table = run
    edges, counts = Results(folder).histogram("dcs", 20)
    expected, _ = np.histogram(table["dcs"].dropna(), edges)
    assert counts.sum() == 199 and counts.tolist() == expected.tolist()


def test_seeds_of_some_captions(run):
    folder, table = run
    ids = table["caption_id"].head(3).tolist()
    found = Results(folder).per_seed(ids, "dcs").pivot(index="caption_id", columns="seed", values="dcs")
    assert (found[1] - found[0]).tolist() == [1.0, 1.0, 1.0]


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_export_of_what_is_shown(run, tmp_path, kind):
    folder, table = run
    decide(folder, table)
    out = tmp_path / f"o'ut.{kind}"
    results = Results(folder)
    results.export(out, kind, Filter(score="dcs", least=225.0))
    found = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert set(found["caption_id"]) == set(table.loc[table["dcs"] >= 225, "caption_id"])
    results.export(out, kind, Filter(search="HYPERLINK"))
    found = pd.read_csv(out) if kind == "csv" else pd.read_parquet(out)
    assert found["caption"].tolist() == ["'" + HOSTILE if kind == "csv" else HOSTILE]


def test_unknown_columns_and_empty_runs_are_refused(run, tmp_path):
    folder, _ = run
    with pytest.raises(InputError, match="no column"):
        Results(folder).page(sort="dcs; DROP TABLE captions")
    with pytest.raises(InputError, match="no column"):
        Results(folder).histogram("caption")
    empty = RunFolder.create(tmp_path / "empty", folder.description)
    with pytest.raises(InputError, match="no scored captions yet"):
        Results(empty)


def test_selections_keep_what_the_run_said(run, tmp_path, monkeypatch):
    folder, table = run
    decide(folder, table)
    monkeypatch.setattr(settings(), "data_dir", tmp_path / "data")
    found = Results(folder)
    assert selections.selections() == []
    ids = table["caption_id"].tolist()[:3]
    made = selections.select(found, "three", caption_ids=ids)
    assert (made.name, made.captions, made.run) == ("three", 3, "it's a run")
    rows = pd.read_parquet(made.path)
    assert set(rows["caption_id"]) == set(ids) and rows["verdict"].notna().all()
    assert selections.select(found, "decided", wanted=Filter(verdict="MV")).captions == 5
    with pytest.raises(InputError, match="There is a selection 'three' already"):
        selections.select(found, "three")
    with pytest.raises(InputError, match="No caption is chosen"):
        selections.select(found, "none", wanted=Filter(search="nowhere"))
    with pytest.raises(InputError, match="is no name"):
        selections.select(found, "../three")
    assert {each.name for each in selections.selections()} == {"three", "decided"}
    selections.delete("three")
    assert [each.name for each in selections.selections()] == ["decided"]
    assert not list(made.path.parent.glob("*.partial"))


def test_undecided_are_the_highest_that_have_no_verdict(run, tmp_path):
    folder, table = run
    decide(folder, table)
    decided = set(table["caption_id"].head(10))
    assert Results(folder).undecided(None, tmp_path / "all.parquet") == (200, 190)
    rows = pd.read_parquet(tmp_path / "all.parquet")
    scores = table.set_index("caption_id")["dcs"]
    assert not decided & set(rows["caption_id"]) and scores[rows["caption_id"]].is_monotonic_decreasing
    highest = table.sort_values(["dcs", "caption_id"], ascending=[False, True])["caption_id"].head(30)
    meant, written = Results(folder).undecided(30, tmp_path / "some.parquet")
    assert meant == 30 and written == len(set(highest) - decided)
    assert set(pd.read_parquet(tmp_path / "some.parquet")["caption_id"]) == set(highest) - decided


def test_columns_of_somebody_elses_run_are_no_sql(run, tmp_path):
    folder, table = run
    owned = tmp_path / "owned"
    name = f"""caption_id" FROM captions; COPY (SELECT 1) TO '{owned}'; --"""
    rows = pa.table({"caption_id": table["caption_id"].head(2).tolist(), "verdict": ["N", "N"], name: [1, 2]})
    folder.append({"verdicts": rows})
    with pytest.raises(InputError, match="which no run of ours has"):
        Results(folder)
    assert not owned.exists()
