"""Sites: named places in a model where activations are read or written.

| site          | what is there                                                            | shape                        |
|---------------|--------------------------------------------------------------------------|------------------------------|
| resid_pre.l   | residual stream entering decoder layer l                                 | (batch, token, hidden)       |
| resid_post.l  | residual stream leaving decoder layer l, before any final norm           | (batch, token, hidden)       |
| attn_out.l    | what attention of layer l adds to the residual stream                    | (batch, token, hidden)       |
| mlp_out.l     | what the MLP of layer l adds to the residual stream                      | (batch, token, hidden)       |
| head_out.l    | each head's part of attn_out.l; their sum is attn_out.l minus the output bias | (batch, token, head, hidden) |

>>> Site.parse("resid_post.5")
Site(kind='resid_post', layer=5)
>>> str(Site("mlp_out", 3))
'mlp_out.3'
"""

from __future__ import annotations

from typing import NamedTuple

from modelscope_app.api.errors import BadInput

SITE_KINDS = ("resid_pre", "resid_post", "attn_out", "mlp_out", "head_out")


class Site(NamedTuple):
    """A place in a model: a kind and a 0-based layer."""

    kind: str
    layer: int

    def __str__(self) -> str:
        return f"{self.kind}.{self.layer}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read `kind.layer`. Raises BadInput naming the kinds there are."""
        kind, dot, layer = text.partition(".")
        if kind not in SITE_KINDS or not dot or not (layer.isascii() and layer.isdigit()):
            raise BadInput(f"{text!r} is not a site: write KIND.LAYER with KIND one of {', '.join(SITE_KINDS)}, as in resid_post.5")
        return cls(kind, int(layer))
