"""Views drawn for people and programs: terminal text, pictures, one-file HTML reports, JSON, CSV and parquet.

`drawings` reads a view's table once and checks it; every front end draws what comes back. Nothing here imports polars or
matplotlib before something is drawn.
"""
