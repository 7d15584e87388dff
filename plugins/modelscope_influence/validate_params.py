"""Options of `influence.validate`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from modelscope_app.api import DataFile, RunReference
from modelscope_influence.params import CURVATURE_HELP, QUERIES_HELP, _Fitting


class ValidateParams(_Fitting):
    """Options of `influence.validate`."""

    queries: DataFile = Field(description=QUERIES_HELP)
    curvature: Literal["ekfac", "kfac", "diagonal"] = Field(default="ekfac", description=CURVATURE_HELP.split(";")[0])
    measure: Literal["loss", "logprob", "margin"] = Field(default="loss", description="what of a query is explained")
    factors: RunReference = Field(
        default="",
        description="an earlier run of influence.factors to take the curvature of, which must be of this checkpoint and these modules",
    )
    removals: int = Field(
        default=20, ge=4, le=1000, description="training rows whose removal is solved for: half of the highest mean |score|, half at random"
    )
    max_steps: int = Field(default=4000, ge=1, le=100_000, description="L-BFGS steps for a removal, at most")
    tolerance: float = Field(
        default=1e-4, gt=0, lt=1, description="a removal is solved when the gradient is this share of what it was at first"
    )
    epsilon_sweep: bool = Field(default=False, description="solve for a tenth and a hundredth of each row's weight too")
    damping_sweep: bool = Field(default=True, description="scores with a tenth and ten times the damping too")
    sweep_responses: bool = Field(default=False, description="solve each removal at a tenth and ten times the damping too")
    label_seeds: int = Field(default=2, ge=0, le=20, description="fits with other labels drawn, with --fisher true")
    halves: bool = Field(default=True, description="fit the curvature on either half of the training rows too")
    exact: bool = Field(default=True, description="solve with the whole Gauss-Newton matrix too, for an mlp of up to 20,000 parameters")
    draws: int = Field(default=1000, ge=200, le=100_000, description="bootstrap draws of the removals")
    level: float = Field(default=0.95, gt=0.5, lt=1, description="level of intervals")
    weight_decay: float | None = Field(
        default=None, ge=0, le=1e6, allow_inf_nan=False, description="of an mlp's training: mean loss + weight_decay / 2 |parameters|^2"
    )
    epochs: int | None = Field(default=None, ge=1, le=1_000_000, description="steps of Adam over all rows to train an mlp anew, if at all")
    learning_rate: float | None = Field(
        default=None, gt=0, le=100, allow_inf_nan=False, description="of training anew; it falls linearly to 0"
    )
    retrain_seed: int = Field(default=0, ge=0, lt=2**31, description="of the weights that training anew begins with")
    lds_subsets: int = Field(
        default=0, ge=0, le=10_000, description="halves of the rows to train anew on, for the linear datamodeling score; 0 for none"
    )

    @model_validator(mode="after")
    def _a_whole_recipe(self) -> ValidateParams:
        given = [self.epochs is not None, self.learning_rate is not None]
        if any(given) and not (all(given) and self.weight_decay is not None):
            raise ValueError("training anew takes epochs, learning_rate and weight_decay together")
        if self.lds_subsets and not all(given):
            raise ValueError("lds_subsets trains anew, which takes epochs, learning_rate and weight_decay")
        if self.lds_subsets in (1, 2):
            raise ValueError("lds_subsets ranks subsets, of which at least 3 are needed")
        return self
