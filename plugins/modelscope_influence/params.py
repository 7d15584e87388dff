"""Options of the influence analyses, declared once."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modelscope_app.api import DataFile, Meaning, RunReference

TRAIN_HELP = "the training data: text, prompt and completion, messages or input_ids; features and label for an mlp"
QUERIES_HELP = "what to explain, in the same form: its completion is what the model did"
MODULES_HELP = (
    "mlp, attention or all (linear layers inside the model's layers), or names and patterns with *, separated by commas; an LM head or "
    "an embedding only by its full name"
)
FISHER_HELP = "labels the curvature is taken over: drawn from the model (true), every class (exact, few classes), the data's (empirical)"
CURVATURE_HELP = "how the Hessian is approximated; identity is the plain dot product of gradients"
DAMPING_HELP = "damping, as a fraction of each module's mean eigenvalue"
PRECISION_HELP = "in which gradients are summed and multiplied; auto is float32, and float64 where the model computes in it"
FLAG_HELP = "a column of the training data, true for the rows that should be found; empty for `poisoned` where it tells rows apart"
BATCH_HELP = (
    "rows of features, or padded tokens, read at once, at most; none for 1024 rows, and 4096 tokens on a GPU, 256 on a CPU (1024 for "
    "models below 10 million parameters)"
)

SelectedText = Annotated[str, Meaning("selection", ("token", "example"))]
"""A text, or the token or example one is on."""


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Fitting(_Params):
    """What curvature is fitted on."""

    train: DataFile = Field(description=TRAIN_HELP)
    modules: str = Field(default="mlp", description=MODULES_HELP)
    curvature: Literal["ekfac", "kfac", "diagonal", "identity"] = Field(default="ekfac", description=CURVATURE_HELP)
    fisher: Literal["true", "exact", "empirical"] = Field(default="true", description=FISHER_HELP)
    label_draws: int = Field(default=1, ge=1, le=1000, description="labels drawn for each position, with --fisher true")
    damping: float = Field(default=0.1, ge=0, le=1e6, allow_inf_nan=False, description=DAMPING_HELP)
    batch_size: int | None = Field(default=None, ge=1, le=10_000_000, description=BATCH_HELP)
    precision: Literal["auto", "float32", "float64"] = Field(default="auto", description=PRECISION_HELP)

    @field_validator("modules")
    @classmethod
    def _some_module(cls, modules: str) -> str:
        if not modules.strip(" ,"):
            raise ValueError("mlp, attention and all are possible, or the name of a module, as in model.layers.*.mlp.*")
        return modules


class FactorsParams(_Fitting):
    """Options of `influence.factors`."""


class _Scoring(_Fitting):
    """What both kinds of scores take."""

    factors: RunReference = Field(
        default="",
        description="an earlier run of influence.factors to take the curvature of, which must be of this checkpoint and these modules",
    )
    flag: str = Field(default="", description=FLAG_HELP)


class ScoresParams(_Scoring):
    """Options of `influence.scores`."""

    curvature: Literal["ekfac", "kfac", "diagonal", "identity", "ggn"] = Field(  # type: ignore[assignment]
        default="ekfac", description=f"{CURVATURE_HELP}; ggn is the whole Gauss-Newton matrix, solved by conjugate gradients"
    )
    tolerance: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="residual --curvature ggn is solved to, as a share of the right side; none for 1e-6 in float64, 1e-4 in float32",
    )
    queries: DataFile = Field(default="", description=QUERIES_HELP)
    prompt: SelectedText = Field(default="", description="with --completion: what the model was given, instead of a file of queries")
    completion: SelectedText = Field(default="", description="one thing the model said, instead of a file of queries")
    template: Literal["auto", "chat", "none"] = Field(
        default="auto",
        description="how a typed query is rendered: as a conversation, or as it stands; auto for a conversation where there is a prompt "
        "and the checkpoint has a chat template",
    )
    measure: Literal["loss", "logprob", "margin"] = Field(default="loss", description="what of a query is explained")
    top_k: int | None = Field(
        default=None, ge=1, le=1_000_000, description="keep only the rows of the highest and lowest scores of each query; none for all"
    )
    rank_by: Literal["score", "relatif"] = Field(
        default="score", description="by what the best are chosen and listed: the score, or the one normalised for long and high-loss rows"
    )
    prefilter: int | None = Field(
        default=None, ge=1, le=10_000_000, description="score only so many rows for each query: those with most words in common (BM25)"
    )
    prefilter_sample: int = Field(
        default=200, ge=0, le=1_000_000, description="rows scored beside those, drawn from the others, which tell what was missed"
    )
    rank: int | None = Field(
        default=None,
        ge=1,
        le=4096,
        description="rank of the queries' gradients in the scan, whose best are scored exactly then; none for 32 where --top-k is "
        "given and the gradients do not fit at once, else exact",
    )
    rerank: int = Field(default=100, ge=1, le=1_000_000, description="rows of each end that are scored exactly after a scan of low rank")
    group_duplicates: bool = Field(default=True, description="find rows of nearly the same tokens, and list them as one")
    per_module: bool = Field(default=False, description="also the score by module, in the table `modules`")
    per_token: bool = Field(default=False, description="also the score by token of the training rows, in the tables `tokens` and `spans`")
    baselines: bool = Field(default=True, description="BM25 and the cosine of gradients beside every score")
    queries_at_once: int | None = Field(
        default=None, ge=1, le=100_000, description="queries whose gradients are held at once; none for what fits into 2 GB"
    )

    @model_validator(mode="after")
    def _makes_sense(self) -> ScoresParams:
        if bool(self.queries) == bool(self.completion):
            raise ValueError("give either --queries FILE, or --completion TEXT with its --prompt TEXT")
        if self.curvature == "ggn" and self.rank is not None:
            raise ValueError("--rank is of directions that are divided by blocks, and --curvature ggn has none; leave --rank out")
        if self.prompt and not self.completion:
            raise ValueError("--prompt TEXT is what --completion TEXT follows, and queries of a file bring their own; give --completion")
        return self


class SelfParams(_Scoring):
    """Options of `influence.self`."""
