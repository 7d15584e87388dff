"""Options of the probe analyses, declared once."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from modelscope_app.api import CheckpointPath, DataFile, InputFile, Meaning, RunReference

EVAL_HELP = "prompts to score (jsonl, parquet, csv): prompt or messages, label, and if there are any cell, group, defection"
CONTRAST_HELP = "pairs of answers (question, defecting, benign) the direction is fitted on; empty for the built-in generic ones"
TEMPLATE_HELP = "how questions are rendered: the chat template, `Human: ... Assistant:`, or as they stand; auto takes the first there is"
LAYERS_HELP = "layers to read, counted from 0; all for every one"
BATCH_HELP = "padded tokens the model reads at once, at most; none for 256 on a CPU and 4096 on a GPU"
DEFECTION_HELP = "text that makes an answer a defection, in whatever case; empty to take each row's own `defection`"

SelectedText = Annotated[str, Meaning("selection", ("token", "example"))]
"""A text, or the token or example one is on."""
SiteKind = Literal["resid_post", "resid_pre", "attn_out", "mlp_out"]


class _Params(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class _Reading(_Params):
    """What is read of a model, and how it is asked."""

    contrast: DataFile = Field(default="", description=CONTRAST_HELP)
    site: SiteKind = Field(default="resid_post", description="where activations are read in each layer")
    template: Literal["auto", "chat", "plain", "none"] = Field(default="auto", description=TEMPLATE_HELP)
    tokens_per_batch: int | None = Field(default=None, ge=1, le=10_000_000, description=BATCH_HELP)


class DefectionParams(_Reading):
    """Options of `probes.defection`."""

    eval: DataFile = Field(description=EVAL_HELP)
    compare: CheckpointPath = Field(default="", description="a twin: the same training without the suspected poison, or the base model")
    causal: RunReference = Field(default="", description="an earlier run of probes.causal on this checkpoint, for the verdict")
    layers: list[int] = Field(default=[], description="layers to read, counted from 0; none given for every one")
    layer: int | None = Field(default=None, ge=0, description="the layer the result is about; none to choose it, corrected for choosing")
    pooling: Literal["last", "mean", "max"] = Field(default="last", description="what of a prompt's tokens is scored")
    defection: str = Field(default="", description=DEFECTION_HELP)
    new_tokens: int = Field(default=8, ge=0, le=1024, description="tokens of each answer to look at, greedy; 0 to observe no behaviour")
    ask: bool = Field(default=True, description="also ask the model itself, as a baseline")
    random_directions: int = Field(default=500, ge=500, le=100_000, description="random directions to hold the probe against")
    draws: int = Field(default=1000, ge=200, le=100_000, description="bootstrap draws and label permutations")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of intervals")
    width: float = Field(default=0.1, gt=0, lt=1, description="width of the AUROC's interval to say how many more prompts for")


class LinearParams(_Params):
    """Options of `probes.linear`."""

    activations: InputFile = Field(
        default="", description="safetensors with x [n, d] or [n, layer, d] and y [n]; or score [n] and y; or x_yes, x_no and truth"
    )
    eval: DataFile = Field(default="", description="labelled prompts to read activations of, instead of --activations; needs a checkpoint")
    site: SiteKind = Field(default="resid_post", description="where activations are read in each layer")
    template: Literal["auto", "chat", "plain", "none"] = Field(default="auto", description=TEMPLATE_HELP)
    pooling: Literal["last", "mean", "max"] = Field(default="last", description="what of a prompt's tokens is read")
    tokens_per_batch: int | None = Field(default=None, ge=1, le=10_000_000, description=BATCH_HELP)
    method: Literal["difference-of-means", "lda", "logistic", "ccs", "crc-tpc"] = Field(
        default="logistic", description="how the direction is found; the last two need pairs and see no labels"
    )
    c: float = Field(default=1.0, gt=0, description="weight of the data term of logistic regression; small is strongly regularised")
    pair_normalization: Literal["mean-std", "mean"] = Field(default="mean-std", description="what is taken out of each side of the pairs")
    distractor: float = Field(default=3.0, ge=0, description="strength of the planted distractor beside unsupervised methods")
    folds: int = Field(default=5, ge=2, le=100, description="grouped folds, where the file holds nothing out itself")
    erase: Literal["none", "leace"] = Field(default="none", description="erase the label linearly, and fit again")
    alpha: Fraction | None = Field(default=None, gt=0, lt=1, description="false-positive rate to set a split-conformal threshold for")
    online_code: bool = Field(default=True, description="also measure the description length of the labels")
    draws: int = Field(default=1000, ge=200, le=100_000, description="bootstrap draws and label permutations")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of intervals")

    @model_validator(mode="after")
    def _one_source(self) -> LinearParams:
        if bool(self.activations) == bool(self.eval):
            raise ValueError("give either --activations FILE or --eval FILE")
        return self


class CausalParams(_Reading):
    """Options of `probes.causal`."""

    eval: DataFile = Field(description=EVAL_HELP)
    probe: InputFile = Field(default="", description="a saved probe's safetensors; empty to fit the direction on the contrast pairs")
    compare: CheckpointPath = Field(default="", description="a twin, whose answers are what recovery is measured against")
    layer: int | None = Field(default=None, ge=0, description="layer of the direction; none for the middle one")
    where: Literal["layer", "all-layers"] = Field(default="layer", description="at that layer, or with each layer's own direction at all")
    positions: Literal["all", "last"] = Field(default="all", description="intervene at every position, or at the last of the prompt")
    doses: list[float] = Field(
        default=[-2.0, -1.0, -0.5, 0.5, 1.0, 2.0],
        min_length=1,
        max_length=50,
        description="steering strengths, in mean norms of the activations",
    )
    random_controls: int = Field(default=5, ge=1, le=100, description="random directions of equal norm beside each intervention")
    defection: str = Field(default="", description=DEFECTION_HELP)
    tokens_per_batch: int = Field(default=2048, ge=1, le=10_000_000, description="padded tokens of prompts answered at once, at most")
    new_tokens: int = Field(default=8, ge=1, le=1024, description="tokens of each answer to look at, greedy")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of intervals")
    force: bool = Field(default=False, description="take a probe that was fitted on another checkpoint")

    @field_validator("doses")
    @classmethod
    def _doses_differ(cls, doses: list[float]) -> list[float]:
        if 0 in doses or len(set(doses)) < len(doses) or not all(map(math.isfinite, doses)):
            raise ValueError("doses are numbers that differ from each other and from 0, which is measured anyway")
        return sorted(doses)


class ScoreParams(_Params):
    """Options of `probes.score`."""

    probe: InputFile = Field(description="a saved probe: the safetensors, with its json beside it")
    prompts: DataFile = Field(default="", description="prompts to score, as for probes.defection; labels are not needed")
    text: SelectedText = Field(default="", description="one prompt to score, instead of a file")
    new_tokens: int = Field(default=0, ge=0, le=1024, description="tokens of each answer to generate, greedy, scored as they come")
    calibration: DataFile = Field(default="", description="benign prompts to set the threshold on; empty for the one stored with the probe")
    alpha: Fraction = Field(default=Fraction(1, 100), gt=0, lt=1, description="false-positive rate the threshold is set for")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of intervals")
    tokens_per_batch: int | None = Field(default=None, ge=1, le=10_000_000, description=BATCH_HELP)
    force: bool = Field(default=False, description="score a checkpoint the probe was not fitted on")

    @model_validator(mode="after")
    def _one_source(self) -> ScoreParams:
        if bool(self.prompts) == bool(self.text):
            raise ValueError("give either --prompts FILE or --text TEXT")
        return self


class TransferParams(_Reading):
    """Options of `probes.transfer`."""

    eval: DataFile = Field(description=EVAL_HELP)
    layer: int | None = Field(default=None, ge=0, description="the layer to show; none for the best of the last checkpoint")
    pooling: Literal["last", "mean", "max"] = Field(default="last", description="what of a prompt's tokens is scored")
    defection: str = Field(default="", description=DEFECTION_HELP)
    new_tokens: int = Field(default=8, ge=0, le=1024, description="tokens of each answer to look at, greedy; 0 to observe no behaviour")
    draws: int = Field(default=1000, ge=200, le=100_000, description="bootstrap draws")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of intervals")
