"""What `influence.factors` does."""

from __future__ import annotations

import polars as pl

from modelscope_app.api import FactsView, JobContext, TableView
from modelscope_influence.fitting import keep
from modelscope_influence.params import FactorsParams
from modelscope_influence.starting import curvature_of, started
from modelscope_influence.weights import total_size


def run(context: JobContext, params: FactorsParams) -> None:
    """Fit curvature, or find it in the cache, and leave it behind."""
    begun = started(context, params)
    fitted = curvature_of(context, begun, params.train)
    keep(context, fitted, begun.settings, len(begun.task.ids), params.train)
    curvatures = [fitted.curvatures[weight.name] for weight in begun.weights]
    context.table(
        "factors",
        pl.DataFrame(
            {
                "module": [weight.name for weight in begun.weights],
                "outputs": [weight.outputs for weight in begun.weights],
                "inputs": [weight.inputs for weight in begun.weights],
                "lambda_mean": [curvature.mean_eigenvalue for curvature in curvatures],
                "damping": [params.damping * curvature.mean_eigenvalue for curvature in curvatures],
                "rows": [curvature.rows for curvature in curvatures],
                "positions": [curvature.positions for curvature in curvatures],
            }
        ),
    )
    context.facts(
        {
            "curvature": params.curvature,
            "fisher": params.fisher,
            "label_draws": begun.settings.draws if params.fisher == "true" else None,
            "seed": context.seed if params.fisher == "true" else None,
            "modules": len(begun.weights),
            "parameters": total_size(begun.weights),
            "rows": len(begun.task.ids),
            "rows_set_aside": len(fitted.aside),
        }
    )
    context.view(FactsView(name="card", title="Curvature"))
    context.view(
        TableView(
            name="factors",
            title="By module",
            table="factors",
            caption="lambda_mean is the mean eigenvalue of the module's block; damping is what is added to each.",
        )
    )
